"""Types of the records that processes leave for each other in a run's folder.

Imports nothing of runner. What is read from a file has only those of its fields that are of their
type (runner.runs.records), so any key can be absent; `object` is what a user's own script writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, TypedDict


class AttemptRecord(TypedDict, total=False):
    """One of `attempts` in termination.json: an attempt that was recovered from."""

    attempt: Required[int | None]
    reason: Required[str | None]
    message: str | None
    steps: Required[int | None]
    peak_bytes: Required[int | None]
    peak_source: str | None
    checkpoint: Required[str | None]
    then: Required[str | None]


class TrainingRecord(TypedDict):
    """One of `trainings` in termination.json, of a run with several."""

    name: str
    steps: int
    max_steps: int | None
    first_loss: float | None
    last_loss: float | None


class OutcomeRecord(TypedDict, total=False):
    """termination.json as runner.runs.outcome.Outcome writes it; reason and exit_code are always
    there, the rest not in a newer runner's."""

    schema_version: int
    reason: str
    exit_code: int
    message: str | None
    budget_bytes: int | None
    peak_bytes: int | None
    peak_source: str | None
    peaks: dict[str, int]
    peak_step: dict[str, int]
    predicted_bytes: int | None
    advice: Sequence[str]
    attempts: Sequence[AttemptRecord]
    enforcement: str
    signals: Sequence[dict[str, object]]
    checkpoint: str | None
    steps: int
    max_steps: int | None
    first_loss: float | None
    last_loss: float | None
    eval_loss: float | None
    trainings: Sequence[TrainingRecord]
    result: str | None
    adapter_sha256: str | None
    adapter_bytes: int | None
    trainer_exit_code: int | None
    started_unix_seconds: float
    ended_unix_seconds: float
    substitutions: Sequence[str]
    warnings: Sequence[str]
    seconds: float


class SupervisorRecord(TypedDict, total=False):
    """supervisor.json: who supervises."""

    schema_version: int
    pid: int
    start_ticks: int
    boot_id: str
    started_unix_seconds: float
    resume: bool


class StatusRecord(TypedDict, total=False):
    """engine/rank-N.json: what a training process says of itself."""

    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: str
    phase: str
    planned_steps: int
    handles: list[str]


class SourcesRecord(TypedDict, total=False):
    """sources.json: what a run was made from, where anybody may have edited it."""

    job_file: str
    job_sha256: str
    command: list[str]
    folder: str
    secrets: list[str]
    sources: dict[str, str]
    reproduces: dict[str, str]


class ResultRecord(TypedDict, total=False):
    """engine/result.json, as far as the supervisor goes by it."""

    completed: bool
    steps: int
    max_steps: int
    tokens: int
    eval_loss: float


class AdapterRecord(TypedDict, total=False):
    """`adapter` in engine/result.json: the trained weights."""

    folder: str
    sha256: str
    size_bytes: int


class FailureRecord(TypedDict, total=False):
    """engine/failure.json: why the engine gave up."""

    kind: str
    message: str
    step: int
    exit_code: int


class StagesRecord(TypedDict, total=False):
    """engine/stages.json, what the toolkit's stages say of themselves."""

    stage: str
    warnings: list[str]


class DeviceMemory(TypedDict):
    """One of `devices` in a line of memory.jsonl."""

    index: int | None
    used_bytes: int | None


class MemoryLine(TypedDict, total=False):
    """A line of memory.jsonl, as far as others than the guard read it."""

    time_unix_seconds: float
    own_bytes: int
    attribution: str
    devices: list[DeviceMemory]


class LossLine(TypedDict, total=False):
    """A line of metrics.jsonl with a step's loss (None: not finite)."""

    step: Required[int]
    loss: Required[float | None]
    phase: object
    time_unix_seconds: object
    learning_rate: object
    tokens_per_second: object
    memory_source: object
    memory_bytes: object
    allocated_bytes: object


class EventRecord(TypedDict):
    """A line of events.jsonl that tells people something; some kinds say more."""

    time_unix_seconds: float
    kind: str
    text: str
