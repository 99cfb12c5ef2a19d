"""The training itself: TRL's trainer by our plan, its callbacks and its result."""
