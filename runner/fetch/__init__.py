"""Download weights and data sets into the user's caches: checked, resumable, nothing superfluous.

A process of its own (`python -m runner.engines.sft.fetch`, told what to fetch on stdin). Imports
huggingface_hub, modelscope_hub and datasets where they are needed; no torch.
"""
