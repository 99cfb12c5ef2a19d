"""Add up what a process holds at the peak of a traced step: shards, allocator, libraries. Pure.

Bytes; of one GPU's process in a GPU run, of all ranks together in a CPU run. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.engines.sft.inside.memory.footprint import ASSUMED, Footprint
from runner.engines.sft.memory.weights import (
    maps_weights,
    shares_weights,
    stored_bytes,
    tokenizer_bytes,
)
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.unused_packages import used_packages
from runner.vram.context import CONTEXT_BYTES, CONTEXT_SPREAD, WORKSPACE_BYTES
from runner.vram.prediction import CONTEXT, LIBRARIES
from runner.vram.sharding import Sharded, shard

if TYPE_CHECKING:
    from runner.engines.sft.inside.memory.step import Traced

FREE_BLOCKS, SAVED, CHECKPOINT = (
    *("libc's free blocks", "the result, read again"),
    "pages of the checkpoint",
)
TOKENIZER = "the tokenizer"
APART = "peaks of the ranks that don't meet"
FREE_SHARE = 0.2
"""Of the tensors, the most that free blocks come to: beyond, large blocks find room among them."""
APART_SHARE = 0.25
"""Of what each further rank maps for its largest tensors, which is there for moments only, what is
not there when the other's is (benchmarks/host_memory.py; on a busy machine all of it)."""

_WEIGHTS = ("frozen weights", "trained weights", "adapter")


@dataclass(frozen=True)
class Held:
    """What the process holds at the peak."""

    allocated_bytes: int
    """By torch's tensors, on one GPU or in one rank."""
    tensors_bytes: int
    """By torch, fragments and workspaces included; on CPU of all ranks."""
    overhead_bytes: int
    """Besides."""
    computed_bytes: int
    """Of the tensors, what was not traced but computed: shards and buckets."""
    spread_bytes: int
    """How far off the overhead may be."""
    apart_bytes: int
    """Of the tensors, what may not be there at once, since ranks come to their peaks apart."""
    offload_bytes: int
    """On the host, in a GPU run that offloads."""
    parts: dict[str, int]

    @property
    def process_bytes(self) -> int:
        return self.tensors_bytes + self.overhead_bytes


def held(plan: SftPlan, traced: Traced, footprint: Footprint = ASSUMED) -> Held:
    """What the process of a plan of one training holds at the peak of a traced step.

    `footprint`: of the processes themselves, in a CPU run.
    """
    if plan.launch.device == "cpu":
        return _on_host(plan, traced, footprint)
    sharded = _sharded(plan, traced)
    computed = sum(sharded.parts.values()) - sum(traced.parts.values())
    allocated = traced.allocated_bytes + computed
    parts = dict(sharded.parts)
    parts["allocator's fragments"] = traced.reserved_bytes - traced.allocated_bytes
    parts["cuBLAS workspace"] = WORKSPACE_BYTES
    parts[CONTEXT] = CONTEXT_BYTES
    return Held(
        allocated_bytes=allocated,
        tensors_bytes=allocated + parts["allocator's fragments"] + WORKSPACE_BYTES,
        overhead_bytes=CONTEXT_BYTES,
        computed_bytes=abs(computed),
        spread_bytes=CONTEXT_SPREAD,
        apart_bytes=0,
        offload_bytes=sharded.offload_bytes,
        parts={name: size for name, size in parts.items() if size},
    )


def _sharded(plan: SftPlan, traced: Traced) -> Sharded:
    """What one rank holds of the parts of a traced step."""
    skeleton = traced.skeleton
    return shard(
        traced.parts,
        plan.launch,
        plan.training,
        weights=skeleton.weight_bytes,
        trained=skeleton.trainable,
        largest_layer=skeleton.largest_layer,
        width=4 if plan.precision == "fp32" else 2,
    )


def _on_host(plan: SftPlan, traced: Traced, footprint: Footprint) -> Held:
    """The same of all processes of a CPU run together, as their proportional shares add up."""
    skeleton, ranks = traced.skeleton, plan.launch.num_processes
    sharded = _sharded(plan, traced)
    computed = sum(sharded.parts.values()) - sum(traced.parts.values())
    mapped = maps_weights(plan)
    once = set(_WEIGHTS[:1]) if mapped and shares_weights(plan) else set()
    parts = {name: size * (1 if name in once else ranks) for name, size in sharded.parts.items()}
    if plan.method == "qlora" and mapped:  # what was quantized lies in the files that stay mapped
        parts[CHECKPOINT] = stored_bytes(plan.model.folder)
    step = sum(size for name, size in traced.parts.items() if name not in _WEIGHTS)
    most_free = FREE_SHARE * traced.allocated_bytes
    parts[FREE_BLOCKS] = int(ranks * max(0, min(most_free, traced.libc.peak_bytes - step)))
    if plan.method == "full":  # its checksum is taken of the files, whose pages then count
        parts[SAVED] = max(0, skeleton.weight_bytes - traced.libc.mapped_bytes)
    parts[TOKENIZER] = ranks * tokenizer_bytes(plan.model.folder)
    apart = (ranks - 1) * traced.libc.mapped_bytes
    if apart:
        parts[APART] = -int(APART_SHARE * apart)
    tensors = sum(parts.values())
    overhead = footprint.of(ranks)
    parts[LIBRARIES] = overhead
    return Held(
        allocated_bytes=traced.allocated_bytes + computed,
        tensors_bytes=tensors,
        overhead_bytes=overhead,
        computed_bytes=abs(computed) * ranks,
        spread_bytes=0,
        apart_bytes=apart,
        offload_bytes=sharded.offload_bytes,
        parts={name: size for name, size in parts.items() if size},
    )


def packages_of(plan: SftPlan) -> tuple[str, ...]:
    """What a plan's processes import beside the training stack."""
    return tuple(sorted(used_packages(plan)))
