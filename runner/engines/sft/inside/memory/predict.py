"""Plan -> Prediction: each training's step traced, what is besides it added, the interval set.

Imports torch by way of `step`. Where a model can't be traced the figures are an estimate from its
sizes (`estimate`), with a wider interval, and say so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from runner.common.errors import RunnerError
from runner.engines.sft.inside.memory.estimate import estimate
from runner.engines.sft.inside.memory.footprint import ASSUMED, Footprint, footprint
from runner.engines.sft.inside.memory.process import held, packages_of
from runner.engines.sft.inside.memory.step import Traced, trace
from runner.engines.sft.memory.ask import ASSUMED_NOTE, Batch
from runner.engines.sft.plan import SftPlan
from runner.vram.prediction import HostMemory, Prediction, TrainingMemory
from runner.vram.sharding import loading_bytes

TRACED_SHARE, ESTIMATED_SHARE = 0.04, 0.30
"""Half-widths of the interval that no measurement has narrowed, as shares of the tensors' bytes."""
HOST_LESS, HOST_MORE = 0.12, 0.18
"""On a CPU, down and up, of the tensors: what libc makes of them swings by their order."""
OVERHEAD_LESS, OVERHEAD_MORE = 0.10, 0.05
"""The same of what the processes hold besides. Down: others that use the same libraries take their
share of the pages off it."""
SHARD_SHARE = 0.15
"""The same, of what shards and buckets add, which is computed and not traced."""
APART_LESS = 0.5


def predict(
    plan: SftPlan, batches: Sequence[Batch], versions: Mapping[str, str | None] | None = None
) -> Prediction:
    """Predict every training of `plan`, each for its batch; measurements correct it afterwards.

    `versions`: of the packages that train, where what their processes hold may be measured for a
    CPU run (footprint); without them it is assumed.

    Raises RefusedError where a config can't be had or an adapter does not fit.
    """
    began = time.monotonic()
    notes: list[str] = []
    own = ASSUMED
    if plan.launch.device == "cpu":
        if versions is not None:
            own = footprint(packages_of(plan), versions)
        if not own.measured:
            notes.append(ASSUMED_NOTE)
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
        memory, kept = _training(part, batch, traced, method, own)
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


def _training(
    plan: SftPlan, batch: Batch, traced: Traced, method: Any, own: Footprint
) -> tuple[TrainingMemory, int]:
    """One training's figures, and the host memory that it keeps."""
    skeleton, found = traced.skeleton, held(plan, traced, own)
    less = more = TRACED_SHARE
    spread_less = spread_more = SHARD_SHARE * found.computed_bytes + found.spread_bytes
    if plan.launch.device == "cpu":
        less, more = HOST_LESS, HOST_MORE
        spread_less += OVERHEAD_LESS * found.overhead_bytes + APART_LESS * found.apart_bytes
        spread_more += OVERHEAD_MORE * found.overhead_bytes
    if method == "estimated":
        less, more = less + ESTIMATED_SHARE, more + ESTIMATED_SHARE
    low = found.process_bytes - less * found.tensors_bytes - spread_less
    high = found.process_bytes + more * found.tensors_bytes + spread_more
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
