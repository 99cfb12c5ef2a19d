"""Torch's own cap on a GPU: allocations beyond the budget fail inside, as an OutOfMemoryError.

The arithmetic is pure; what is measured for it imports torch and runner.machine.nvml when called.
Nothing is set through PYTORCH_CUDA_ALLOC_CONF, so what a user has put there holds; a smaller
fraction of theirs is kept.
"""

from __future__ import annotations

import os
from typing import Any

from runner.common import terminal
from runner.common.errors import RefusedError
from runner.common.units import GIB, MIB, format_bytes
from runner.machine.nvml import Nvml, NvmlFailed, NvmlUnavailable

LEAST_OUTSIDE_BYTES = 512 * MIB  # the CUDA context with kernels that are loaded later
NCCL_BYTES = 512 * MIB  # its buffers come with the first collective, after this is measured
IMPLAUSIBLE_BYTES = 2 * GIB  # no context: another's, whose pid is the same in another namespace
UNSURE_BYTES = 1 * GIB  # what the GPU's total may tell, where others may be on it


def outside_bytes(measured: int | None, processes: int) -> int:
    """What a process holds on its GPU outside of torch's allocator, in bytes.

    Args:
        measured: after a first tensor; None where it could not be.
        processes: that train together; more than one need NCCL.
    """
    return max(LEAST_OUTSIDE_BYTES, measured or 0) + (NCCL_BYTES if processes > 1 else 0)


def cap_fraction(
    limit_bytes: int, total_bytes: int, outside: int, standing: float = 1.0
) -> float | None:
    """The fraction for torch's set_per_process_memory_fraction, which is of `total_bytes`.

    The total is the one that torch sees in this process. In a container whose cgroup the driver
    caps it is that cap already, and since the fraction is worked out from it here the budget is
    not applied twice. `standing` is the fraction set before, by the user; the smaller one holds.

    Returns None where the budget leaves nothing for tensors.
    """
    if limit_bytes <= outside or total_bytes <= 0:
        return None
    return min(1.0, standing, (limit_bytes - outside) / total_bytes)


def set_cap(limit_bytes: int, device: int, processes: int) -> int:
    """Cap torch's allocator on `device`; the bytes that it leaves for what is outside of it.

    Raises RefusedError where the budget leaves nothing for tensors.
    """
    import torch

    torch.zeros(1, device=f"cuda:{device}")
    properties: Any = torch.cuda.get_device_properties(device)
    total = int(properties.total_memory)
    measured, how = _measure(torch, device, str(getattr(properties, "uuid", "")))
    outside = outside_bytes(measured, processes)
    standing = getattr(torch.cuda.memory, "get_per_process_memory_fraction", None)  # torch 2.9
    share = cap_fraction(
        limit_bytes, total, outside, 1.0 if standing is None else float(standing(device))
    )
    if share is None:
        raise RefusedError(
            f"a budget of {format_bytes(limit_bytes)} a GPU leaves nothing for tensors: "
            f"{format_bytes(outside)} are held outside of torch",
            f"budget.gpu_memory needs more than {format_bytes(outside)}",
        )
    torch.cuda.set_per_process_memory_fraction(share, device)
    terminal.say(
        f"runner: torch's cap: {format_bytes(int(share * total))} of {format_bytes(total)}, "
        f"{format_bytes(outside)} left for what is outside of it ({how})"
    )
    return outside


def _measure(torch: Any, device: int, uuid: str) -> tuple[int | None, str]:
    """What this process holds on its GPU outside of torch now, and how that is known."""
    reserved = int(torch.cuda.memory_reserved(device))
    listed = _listed_bytes(uuid)
    if listed is not None and 0 < listed - reserved < IMPLAUSIBLE_BYTES:
        return listed - reserved, "measured by NVML"
    free, total = torch.cuda.mem_get_info(device)
    return min(int(total) - int(free) - reserved, UNSURE_BYTES), "measured on the whole GPU"


def _listed_bytes(uuid: str) -> int | None:
    """What NVML lists for this very process; None where it does not, as in a container."""
    try:
        with Nvml() as nvml:
            for index, found in nvml.devices():
                if found is None or not uuid or found.removeprefix("GPU-") != uuid:
                    continue
                for process in nvml.read(index).processes or ():
                    if process.pid == os.getpid():
                        return process.used_bytes
    except (NvmlUnavailable, NvmlFailed):
        return None
    return None
