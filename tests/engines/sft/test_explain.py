"""Which kind of failure an exception is, by the libraries' own words."""

from __future__ import annotations

import errno

import pytest

from runner.engines.sft.inside import __main__ as engine
from runner.engines.sft.inside.train.loss_check import NonFiniteLoss

# torch 2.x, c10/cuda/CUDACachingAllocator.cpp: the "allowed" part is there only under a cap
CAPPED = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 70.00 GiB is free. 8.00 GiB allowed; Of the allocated memory 7.1 GiB is allocated."
)
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.5 GiB"


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError is told: by its name."""


@pytest.mark.parametrize(
    ("error", "free_bytes", "kind"),
    [
        (OutOfMemoryError(CAPPED), 70 << 30, "over_budget"),
        (OutOfMemoryError(CAPPED), 100 << 20, "cuda_oom"),  # the card itself was full
        (OutOfMemoryError(FULL), 70 << 30, "cuda_oom"),
        (NonFiniteLoss("the loss is nan at step 3"), 0, "non_finite_loss"),
        (MemoryError(), 0, "host_oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB"), 0, "host_oom"),
        (OSError(errno.ENOSPC, "No space left on device"), 0, "disk_full"),
        (KeyError("x"), 0, "failed"),
    ],
)
def test_the_kind_of_a_failure(
    error: Exception, free_bytes: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_free_gpu_bytes", lambda: free_bytes)
    found, message = engine._explain(error)
    assert found == kind
    assert message and "\n" not in message
