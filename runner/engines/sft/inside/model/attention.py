"""Which of torch's attention backends a training may take. Imports torch when called."""

from __future__ import annotations

import os

AVOIDS_RECOMPILING = "TORCH_CUDNN_SDPA_AVOID_RECOMPILE"
"""The user's own way to keep cuDNN and its plans; torch calls it experimental."""


def avoid_plan_building() -> str | None:
    """Leave cuDNN's attention out, in this process; a line that says so, None where it stays.

    From torch 2.11 on cuDNN comes first on sm_90, and it builds a plan for each (batch, length)
    that it has not met: about a second each (transformers issue 48163, FunASR issue 3704). Batches
    here are padded to their longest row, so nearly each is a new shape. Flash attention computes
    the same, without plans. engine/stack.json records the switch as `sdp.cudnn`.
    """
    import torch

    if os.environ.get(AVOIDS_RECOMPILING) == "1":
        return None
    torch.backends.cuda.enable_cudnn_sdp(False)
    return (
        "attention without cuDNN's kernels, which plan anew for each length of a batch; "
        f"{AVOIDS_RECOMPILING}=1 keeps them"
    )
