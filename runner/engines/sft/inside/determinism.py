"""`deterministic: true` in the engine: only kernels that give the same bits each time, or none.

Imports torch when called. What has to stand in the environment before CUDA starts is in launch.sh.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.plan import SftPlan

WORKSPACE_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""The values with which cuBLAS gives the same bits (its manual, "Results reproducibility")."""
_LACKING = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS = "not deterministic because it uses CuBLAS"
_HINT = "deterministic: false trains it; two runs may then differ in their last bits"


def make_deterministic(plan: SftPlan) -> None:
    """Let torch take deterministic kernels only, in this process; before its first tensor.

    What comes of the one switch, by torch's own sources: index_add, scatter_add, gather's backward
    and cuDNN's convolutions take another kernel; the backward pass of flash and memory-efficient
    attention adds in a fixed order; cuDNN's attention is not taken. TF32 stays as it is: it rounds,
    each time alike.

    Raises:
        RefusedError: on a GPU, without cuBLAS' workspace in the environment.
    """
    import torch

    if plan.launch.device == "cuda" and os.environ.get(WORKSPACE_VARIABLE) not in WORKSPACES:
        raise RefusedError(
            f"deterministic: true needs {WORKSPACE_VARIABLE} in the environment before CUDA starts",
            f"launch.sh sets it; by hand: export {WORKSPACE_VARIABLE}={WORKSPACES[0]}",
        )
    torch.use_deterministic_algorithms(True)
    # Else torch fills every new tensor, so that what reads memory it never wrote is found out:
    # a write of all activations in each step, for a defect that the hash of a result shows too.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # it measures, and takes what was faster today
    if plan.launch.device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # said, not only passed over


@contextmanager
def deterministic_or_named() -> Iterator[None]:
    """Turn torch's complaint of an operation that has no deterministic kernel into ours.

    Raises:
        RunnerError: naming the operation and what to do.
    """
    try:
        yield
    except RuntimeError as error:
        lacking = lacking_kernel(str(error))
        if lacking is None:
            raise
        raise RunnerError(f"deterministic: true: {lacking}", _HINT) from None


def lacking_kernel(text: str) -> str | None:
    """What torch says it can't do deterministically, in a sentence; None where it says no such."""
    if _CUBLAS in text:
        return f"cuBLAS is not deterministic without {WORKSPACE_VARIABLE}={WORKSPACES[0]}"
    found = _LACKING.search(text)
    if found is None:
        return None
    return f"torch {_version()} has no deterministic kernel of {found[1]}, which this training uses"


def _version() -> str:
    import torch

    return str(torch.__version__)
