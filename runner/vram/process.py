"""From a traced step to what the process takes: shards, allocator, libraries. Pure.

Bytes; of one card's process in a GPU run, of all ranks together in a CPU run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.plan import Plan
from runner.vram.record import CONTEXT, LIBRARIES
from runner.vram.shards import PYTHON_BYTES, shard

if TYPE_CHECKING:
    from runner.vram.step import Traced

MIB = 1 << 20
CONTEXT_BYTES = 450 * MIB
"""CUDA context and loaded kernels of a torch process, where none was measured on this machine: 300
MiB (shared/docs/vram.md) to 600 MiB are seen, by card and driver."""
CONTEXT_SPREAD = 200 * MIB
WORKSPACE_BYTES = 32 * MIB
"""cuBLAS' workspace, out of torch's allocator (CUBLAS_WORKSPACE_CONFIG's default on Hopper; 8 MiB
on older cards)."""
HOST_SPREAD = 250 * MIB


@dataclass(frozen=True)
class Held:
    """What the process holds at the peak."""

    allocated_bytes: int
    """By torch's tensors, on one card or in one rank."""
    tensors_bytes: int
    """By torch, fragments and workspaces included; on CPU of all ranks."""
    overhead_bytes: int
    """Besides."""
    computed_bytes: int
    """Of the tensors, what was not traced but computed: shards and buckets."""
    spread_bytes: int
    """How far off the overhead may be."""
    offload_bytes: int
    """On the host, in a GPU run that offloads."""
    parts: dict[str, int]

    @property
    def process_bytes(self) -> int:
        return self.tensors_bytes + self.overhead_bytes


def held(plan: Plan, traced: Traced) -> Held:
    """What the process of a plan of one training holds at the peak of a traced step."""
    skeleton, gpu = traced.skeleton, plan.launch.device == "cuda"
    sharded = shard(
        traced.parts,
        plan.launch,
        plan.training,
        weights=skeleton.weight_bytes,
        trained=skeleton.trainable,
        largest_layer=skeleton.largest_layer,
        width=4 if plan.precision == "fp32" else 2,
    )
    computed = sum(sharded.parts.values()) - sum(traced.parts.values())
    allocated = traced.allocated_bytes + computed
    ranks = 1 if gpu else plan.launch.num_processes
    parts = {name: size * ranks for name, size in sharded.parts.items()}
    tensors = allocated * ranks
    if gpu:
        parts["allocator's fragments"] = traced.reserved_bytes - traced.allocated_bytes
        parts["cuBLAS workspace"] = WORKSPACE_BYTES
        tensors += parts["allocator's fragments"] + WORKSPACE_BYTES
    overhead = CONTEXT_BYTES if gpu else PYTHON_BYTES * ranks
    parts[CONTEXT if gpu else LIBRARIES] = overhead
    return Held(
        allocated_bytes=allocated,
        tensors_bytes=tensors,
        overhead_bytes=overhead,
        computed_bytes=abs(computed),
        spread_bytes=CONTEXT_SPREAD if gpu else HOST_SPREAD * ranks,
        offload_bytes=sharded.offload_bytes,
        parts={name: size for name, size in parts.items() if size},
    )
