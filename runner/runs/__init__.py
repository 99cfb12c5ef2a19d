"""A run on disk: its folder, records, state, outcome and checkpoints. Imports runner.common."""
