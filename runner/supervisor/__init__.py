"""The supervisor of one run: `python -m runner.supervisor RUN_FOLDER [--resume]`.

Start the launch script, sample memory, decide by the policy, act, record, and write
termination.json last of all. Imports no training library.
"""
