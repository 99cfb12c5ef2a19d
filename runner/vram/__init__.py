"""How much memory a plan will take, before it starts: predicted, and fitted to a budget.

`record`, `allocator`, `shards`, `calibration`, `ladder` are pure; `tracker`, `skeleton`, `stored`,
`step`, `predict` and `fit` import torch, transformers, peft and trl. Asked in a process of its own:
`python -m runner.engines.sft.inside.memory REQUEST`.
"""
