"""Plan -> Prediction: each training's step traced, what is besides it added, the interval set.

Imports torch by way of `step`. Where a model can't be traced the figures are an estimate from its
sizes (`estimate`), with a wider interval, and say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from runner.errors import RunnerError
from runner.plan import Plan
from runner.vram.ask import Batch
from runner.vram.estimate import estimate
from runner.vram.process import held
from runner.vram.record import HostMemory, Prediction, TrainingMemory
from runner.vram.shards import loading_bytes
from runner.vram.step import Traced, trace

TRACED_SHARE, ESTIMATED_SHARE = 0.04, 0.30
"""Half-widths of the interval that no measurement has narrowed, as shares of the tensors' bytes."""
HOST_SHARE, HOST_MORE = 0.15, 0.8
"""On a CPU, down and up: libc and the math libraries keep what tensors give back, 9 % to 80 % more
than the tensors come to (benchmarks/vram_battery.py --device cpu)."""
SHARD_SHARE = 0.15
"""The same, of what shards and buckets add, which is computed and not traced."""


def predict(plan: Plan, batches: Sequence[Batch]) -> Prediction:
    """Predict every training of `plan`, each for its batch; measurements correct it afterwards.

    Raises RefusedError where a config can't be had or an adapter does not fit.
    """
    began = time.monotonic()
    notes: list[str] = []
    trainings, weights, on_device, offload = [], 0, False, 0
    for part, batch in zip(plan.trainings, batches, strict=True):
        try:
            traced = trace(part, batch.tokens, images=batch.images)
            method = "traced"
        except RunnerError:
            raise
        except Exception as error:  # a model's own code fails under fake tensors as it likes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            notes.append(
                f"the step could not be traced ({type(error).__name__}: {reason}): an estimate "
                "from the model's sizes instead, less sure"
            )
            traced, method = estimate(part, batch.tokens, images=batch.images), "estimated"
        notes += [note for note in traced.skeleton.notes if note not in notes]
        memory, kept = _training(part, batch, traced, method)
        trainings.append(memory)
        weights = max(weights, traced.skeleton.weight_bytes)
        offload = max(offload, kept)
        on_device = part.method == "qlora" and part.launch.deepspeed != "zero3"
    return Prediction(
        device=plan.launch.device,
        num_processes=plan.launch.num_processes,
        trainings=trainings,
        host=HostMemory(
            loading_bytes=loading_bytes(weights, plan.launch, on_device=on_device),
            offload_bytes=offload,
        )
        if plan.launch.device == "cuda"
        else None,
        notes=notes,
        seconds=round(time.monotonic() - began, 2),
    )


def _training(plan: Plan, batch: Batch, traced: Traced, method: Any) -> tuple[TrainingMemory, int]:
    """One training's figures, and the host memory that it keeps."""
    skeleton, found = traced.skeleton, held(plan, traced)
    less = more = TRACED_SHARE
    if plan.launch.device == "cpu":
        less, more = HOST_SHARE, HOST_MORE
    if method == "estimated":
        less, more = less + ESTIMATED_SHARE, more + ESTIMATED_SHARE
    spread = SHARD_SHARE * found.computed_bytes + found.spread_bytes
    low = found.process_bytes - less * found.tensors_bytes - spread
    high = found.process_bytes + more * found.tensors_bytes + spread
    memory = TrainingMemory(
        phase=plan.phase,
        rows=plan.training.per_device_train_batch_size,
        tokens=batch.tokens,
        images=batch.images,
        length_from=batch.because,
        method=method,
        allocated_bytes=found.allocated_bytes,
        reserved_bytes=found.tensors_bytes,
        overhead_bytes=found.overhead_bytes,
        process_bytes=found.process_bytes,
        low_bytes=max(0, int(low)),
        high_bytes=int(high),
        parts=found.parts,
        at=traced.phase,
        flops=traced.flops,
        trainable=skeleton.trainable,
        total=skeleton.total,
        layers=skeleton.layers,
    )
    return memory, found.offload_bytes
