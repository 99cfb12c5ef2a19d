"""Prediction: how much memory a plan takes, of what, and how sure that is. Pure; pydantic only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runner.common import durable

SCHEMA_VERSION = 1
CONTEXT, LIBRARIES = "CUDA context", "Python and libraries"
"""Names of the part that is not torch's, on a GPU and on a CPU."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingMemory(_Record):
    """One training's step at its peak. Bytes, on the GPU (or in the CPU process) that has most."""

    phase: str = Field(description="The training's name; empty where it is the only one")
    rows: int = Field(description="Per-device batch size")
    tokens: int = Field(description="Length of every row of the batch")
    images: int = 0
    length_from: str = Field(description="Why `tokens` is what it is")
    method: Literal["traced", "estimated"]
    allocated_bytes: int = Field(description="What torch's tensors hold at the peak")
    reserved_bytes: int = Field(description="What torch's allocator holds then, with fragments")
    overhead_bytes: int = Field(description="What the process holds besides")
    uncorrected_overhead_bytes: int | None = Field(
        None, description="The same before measurements corrected it; None: they did not"
    )
    process_bytes: int = Field(description="What NVML will show of the process, or its PSS")
    low_bytes: int
    high_bytes: int
    parts: dict[str, int] = Field(description="What process_bytes is made of")
    at: str = Field(description="Where in the step the peak is")
    flops: float = Field(description="Of one forward and backward pass, recomputation included")
    trainable: int
    total: int
    layers: int = Field(0, description="Layers that can recompute their activations; 0: unknown")


class HostMemory(_Record):
    """Host memory of all the run's processes together, in bytes."""

    loading_bytes: int = Field(description="At the most while weights are loaded")
    offload_bytes: int = Field(description="Kept there while training")

    @property
    def needed_bytes(self) -> int:
        return self.loading_bytes + self.offload_bytes


class Prediction(_Record):
    """What a plan will take."""

    schema_version: int = SCHEMA_VERSION
    device: Literal["cuda", "cpu"]
    num_processes: int = 1
    trainings: list[TrainingMemory]
    host: HostMemory | None = None
    calibration: str | None = Field(
        None, description="What earlier measurements corrected; None: none were there"
    )
    notes: list[str] = []
    seconds: float = Field(0.0, description="What it took to predict")

    @property
    def largest(self) -> TrainingMemory:
        """The training that takes most."""
        return max(self.trainings, key=lambda one: one.process_bytes)

    @property
    def process_bytes(self) -> int:
        return self.largest.process_bytes

    @property
    def low_bytes(self) -> int:
        return self.largest.low_bytes

    @property
    def high_bytes(self) -> int:
        return max(one.high_bytes for one in self.trainings)

    @property
    def plus_minus_bytes(self) -> int:
        """Half the width of the interval."""
        return (self.largest.high_bytes - self.largest.low_bytes) // 2


def read_prediction(path: Path) -> Prediction | None:
    """The prediction in a file, such as a run folder's; None where it is none, or damaged."""
    try:
        return Prediction.model_validate(durable.read_json(path))
    except ValidationError:
        return None
