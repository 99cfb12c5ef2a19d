"""What several processes, DeepSpeed's shards and offloading add to a step, and take. Pure.

Bytes on each GPU for a model of `weights` bytes in all, `trained` values that are trained, on
`processes` cards. Sources: Rajbhandari et al. 2020 (ZeRO: 2 + 2 + 12 bytes a trained value in
mixed precision) and DeepSpeed 0.19's runtime/zero/stage_1_and_2.py and stage3.py for its buffers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from runner.jobs.training import TrainingSettings
from runner.plans.base import PlannedLaunch

BUCKET_VALUES = 50_000_000
"""Gradients that DeepSpeed reduces at once, as deepspeed.json says (its own default is 500 M,
1 GiB twice over on every GPU, however small an adapter is)."""
PREFETCH_VALUES = 50_000_000
"""ZeRO-3's own default of weights that are gathered ahead."""
GLOO_COPIES = 3
"""Of gathered weights on a CPU: gloo takes them in and out by copies, which libc keeps for the next
(measured, benchmarks/host_memory.py: two configurations of ZeRO-3 with 115 MiB of weights)."""
DDP_FIRST_BUCKET_BYTES = 1 << 20
PYTHON_BYTES = 700 << 20
"""Of a training process without its model: Python, torch, transformers, peft, trl (measured:
0.68 GiB with its launcher on this project's CPU machine, a CUDA torch maps more)."""


@dataclass(frozen=True)
class Sharded:
    """What a GPU and the host have instead."""

    parts: dict[str, int]
    """Every part of the GPU's peak, in place of those that were traced for one replica."""
    offload_bytes: int
    """On the host, of all processes together."""


def state_bytes(trained: int, training: TrainingSettings) -> int:
    """AdamW's two moments of `trained` values, in bytes."""
    if training.optim == "adamw_torch":
        return 8 * trained
    return 2 * trained + 8 * math.ceil(trained / 256)


def shard(
    parts: Mapping[str, int],
    launch: PlannedLaunch,
    training: TrainingSettings,
    *,
    weights: int,
    trained: int,
    largest_layer: int,
    width: int,
) -> Sharded:
    """The parts of one GPU's peak.

    Args:
        parts: of one replica, as traced; under DeepSpeed without optimizer and its states.
        weights: bytes of all weights, frozen and trained.
        trained: values that are trained; a count.
        largest_layer: bytes of the largest module's weights.
        width: bytes of a value in the computing precision.
    """
    out, processes = dict(parts), launch.num_processes
    if launch.deepspeed == "none":
        if processes > 1:
            out["gradient buckets (DDP)"] = 4 * trained + DDP_FIRST_BUCKET_BYTES
        return Sharded(out, 0)
    own = math.ceil(trained / processes)
    copies = 4 * own
    states = state_bytes(own, training)
    offload = 0
    if launch.offload == "none":
        out["fp32 copies of what is trained (ZeRO shard)"] = copies
        out["optimizer states (ZeRO shard)"] = states
    else:
        offload = processes * (copies + states + 4 * own)
    # one is filled while the other is sent; on a host only what is written takes memory
    buckets = 2 * BUCKET_VALUES if launch.device == "cuda" else min(BUCKET_VALUES, trained)
    out["gradient buckets (ZeRO)"] = buckets * width
    out["gradients kept (ZeRO)"] = width * (trained if launch.deepspeed == "zero1" else own)
    if launch.deepspeed == "zero3":
        for name in ("frozen weights", "trained weights", "adapter"):
            if name in out:
                out[name] = math.ceil(out[name] / processes)
        gathered = 2 * largest_layer + PREFETCH_VALUES * width
        copies = 1 if launch.device == "cuda" else GLOO_COPIES
        out["gathered weights (ZeRO-3)"] = copies * min(weights, gathered)
        if launch.offload == "parameters":
            moved = sum(out.pop(name, 0) for name in ("frozen weights", "trained weights"))
            offload += processes * moved
    return Sharded(out, offload)


def loading_bytes(weights: int, launch: PlannedLaunch, *, on_device: bool) -> int:
    """Host memory while all processes load their weights, in bytes.

    `on_device`: weights go to the GPU one by one (a quantized base); else each process has the
    whole model on the host before it moves it.
    """
    held = 0 if on_device else weights
    return launch.num_processes * (held + PYTHON_BYTES)
