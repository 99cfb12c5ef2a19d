"""What runs inside a run: `python -m runner.engines.sft.inside RUN_FOLDER`.

Only here may torch, transformers, peft, trl, deepspeed and datasets be
imported, and only inside the modules that need them. The engine knows no Docker and no guard.
"""
