"""Predicted against measured, kept between runs, and what it corrects. Pure but for two functions.

Every smoke measures the step that was predicted for it. Records are kept under the user's state
folder, one line each; what counts is only what was measured on the same device, with the same stack
and method. Two figures come of them: what a process holds besides its tensors (from small models,
where little else is there), and measured over predicted for the tensors (from larger ones).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, ValidationError

from runner.common import durable
from runner.common.state_folder import state_folder
from runner.vram.prediction import CONTEXT, LIBRARIES, Prediction, TrainingMemory

SMALL_BYTES = 1 << 30
"""Tensors below this say nothing about a ratio: what else is in the process is as large."""
NARROWEST_SHARE = 0.01
"""Half-width of the interval that measurements can bring it down to."""
ONE_MEASUREMENT_SHARE = {"cuda": 0.04, "cpu": 0.2}
"""Half-width, as a share of the tensors, after one measurement; it falls with the root of their
number. Host memory swings with what libc keeps."""
KNOWN_OVERHEAD_SHARE = 0.06
"""Half-width on a CPU, as a share of what processes hold besides, however often it was measured:
neighbours that map the same libraries come and go."""
CPU_SCHEMA_VERSION = 3
"""Records of host memory before it were made beside figures that meant something else."""
UNKNOWN_OVERHEAD_SHARE = 0.2
"""Of an assumed overhead, what it widens an interval by; taken off where it was measured."""
KEPT = 50
"""Newest records that count."""


class Measured(BaseModel):
    """One step that was predicted and measured. Bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    device: str
    """The GPU's name, or "cpu"."""
    stack: str
    method: str
    reserved_bytes: int
    """Predicted, of torch's allocator."""
    overhead_bytes: int
    """Predicted, of all else in the process."""
    measured_bytes: int
    source: str
    """How it was measured: nvml_pid:nvml, host_process_tree:pss, ..."""
    job: str
    run: str
    time_unix_seconds: float


class Correction(BaseModel):
    """What measurements say of a prediction."""

    model_config = ConfigDict(frozen=True)

    overhead_bytes: int | None
    """In place of the one that is assumed; None where no small model was measured."""
    overhead_ratio: float = 1.0
    """Measured over predicted of the same, which on a CPU grows with the processes."""
    ratio: float
    """Measured over predicted tensors; 1 where no large model was measured."""
    spread: float
    """The largest distance of a ratio from the median; a share. 0 for fewer than two."""
    samples: int
    large: int = 0
    """Of the samples those of larger models, of which the ratio is."""

    @property
    def text(self) -> str:
        """For people."""
        ratio = f"x {self.ratio:.3f}" if self.ratio != 1 else "as predicted"
        overhead = (
            f", {self.overhead_bytes / 2**30:.2f} GiB besides"
            if self.overhead_bytes is not None
            else ""
        )
        if overhead and self.overhead_ratio != 1:
            overhead = f", x {self.overhead_ratio:.3f} besides"
        return f"{self.samples} step(s) of this device, stack and method: {ratio}{overhead}"


def correction(records: Iterable[Measured]) -> Correction | None:
    """What records of one device, stack and method come to; None where there are none."""
    found = list(records)[-KEPT:]
    if not found:
        return None
    of_small = [
        one
        for one in found
        if one.reserved_bytes < SMALL_BYTES and one.measured_bytes > one.reserved_bytes
    ]
    small = [one.measured_bytes - one.reserved_bytes for one in of_small]
    overhead = int(median(small)) if small else None
    times = [
        size / one.overhead_bytes
        for one, size in zip(of_small, small, strict=True)
        if one.overhead_bytes
    ]
    overhead_ratio = median(times) if times else 1.0

    def besides(one: Measured) -> float:
        if one.device == "cpu":
            return overhead_ratio * one.overhead_bytes
        return one.overhead_bytes if overhead is None else overhead

    ratios = [
        (one.measured_bytes - besides(one)) / one.reserved_bytes
        for one in found
        if one.reserved_bytes >= SMALL_BYTES
    ]
    middle = median(ratios) if ratios else 1.0
    return Correction(
        overhead_bytes=overhead,
        overhead_ratio=round(overhead_ratio, 4),
        ratio=round(middle, 4),
        spread=round(max((abs(one - middle) for one in ratios), default=0.0), 4),
        samples=len(found),
        large=len(ratios),
    )


def apply(prediction: Prediction, found: Correction | None) -> Prediction:
    """The prediction as measurements correct it; as it is where there are none."""
    if found is None:
        return prediction
    trainings = [_corrected(one, found, prediction) for one in prediction.trainings]
    return prediction.model_copy(update={"trainings": trainings, "calibration": found.text})


def _corrected(memory: TrainingMemory, found: Correction, prediction: Prediction) -> TrainingMemory:
    parts = dict(memory.parts)
    name = CONTEXT if prediction.device == "cuda" else LIBRARIES
    less = float(memory.process_bytes - memory.low_bytes)
    more = float(memory.high_bytes - memory.process_bytes)
    overhead = memory.overhead_bytes
    cpu = prediction.device == "cpu"
    if cpu and found.overhead_bytes is not None:
        overhead = parts[name] = int(found.overhead_ratio * memory.overhead_bytes)
    elif found.overhead_bytes is not None:
        overhead = found.overhead_bytes
        less -= UNKNOWN_OVERHEAD_SHARE * memory.overhead_bytes
        more -= UNKNOWN_OVERHEAD_SHARE * memory.overhead_bytes
        parts[name] = overhead
    tensors = memory.reserved_bytes
    if found.large:
        tensors = int(memory.reserved_bytes * found.ratio)
        if tensors != memory.reserved_bytes:
            parts["correction by measurements"] = tensors - memory.reserved_bytes
        if memory.method == "traced":
            wide = ONE_MEASUREMENT_SHARE[prediction.device] / math.sqrt(found.large)
            less = more = max(wide, found.spread) * tensors
            if cpu:
                unsure = KNOWN_OVERHEAD_SHARE * overhead
                less, more = less + unsure, more + unsure
    process = tensors + overhead
    less, more = (max(one, NARROWEST_SHARE * process) for one in (less, more))
    return memory.model_copy(
        update={
            "parts": parts,
            "overhead_bytes": overhead,
            "uncorrected_overhead_bytes": memory.overhead_bytes if cpu else None,
            "process_bytes": process,
            "low_bytes": max(0, int(process - less)),
            "high_bytes": int(process + more),
        }
    )


def matching(records: Sequence[Measured], device: str, stack: str, method: str) -> list[Measured]:
    """Those of one device, stack and method."""
    return [
        one
        for one in records
        if (one.device, one.stack, one.method) == (device, stack, method)
        and (device != "cpu" or one.schema_version >= CPU_SCHEMA_VERSION)
    ]


def read_records(folder: Path | None = None) -> list[Measured]:
    """Every readable record, oldest first; lines that are none are passed over."""
    out = []
    for line in durable.read_jsonl((folder or state_folder()) / "calibration.jsonl"):
        try:
            out.append(Measured.model_validate(line))
        except ValidationError:
            continue
    return out


def shipped_records() -> list[Measured]:
    """Those that come with runner, of GPUs that it was measured on; none so far."""
    path = Path(__file__).with_name("calibration.json")
    if not path.is_file():
        return []
    entries: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))["records"]
    return [Measured.model_validate(entry) for entry in entries]


def keep(record: Measured, folder: Path | None = None) -> Path:
    """Append a record; the file. Raises OSError."""
    path = (folder or state_folder()) / "calibration.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = durable.JsonlWriter(path)
    try:
        writer.write(record.model_dump(mode="json"))
    finally:
        writer.close()
    return path
