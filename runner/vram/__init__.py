"""Predict how much memory a plan will take: the records, and the arithmetic that needs no torch.

`prediction`, `allocator`, `sharding` and `context` are pure; `calibration` keeps records. The
tracing runs in a process of its own: `python -m runner.engines.sft.inside.memory REQUEST`.
"""
