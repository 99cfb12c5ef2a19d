"""The supervisor of one run: `python -m runner.supervisor RUN_FOLDER [--resume]`.

Starts the launch script, samples memory, decides by the policy, acts, records, and writes
termination.json last of all. Imports the guard, the executor and the records; no training library.
"""
