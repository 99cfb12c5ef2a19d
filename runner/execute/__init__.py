"""Where a run runs. An executor starts launch.sh and says how it ended; it judges nothing."""
