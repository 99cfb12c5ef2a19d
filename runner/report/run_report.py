"""Types of the document of `runner report --json`, which the views for people read.

Imports the records' types of runner.runs. `object` is what an engine wrote: it can be anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from runner.runs.record_types import EventRecord, OutcomeRecord


class PlanLines(TypedDict):
    """A plan as it is shown."""

    engine: str | None
    lines: list[list[str]]
    substitutions: list[str]


class LossFigures(TypedDict):
    """The losses of a training, or of all of a run."""

    logged_steps: int
    first: float | None
    last: float | None
    last_step: int
    median_tokens_per_second: float
    curve: str


class TrainingFigures(TypedDict):
    """One training of a run with several; its losses are None where it was not begun."""

    name: str
    steps: int
    max_steps: int | None
    losses: LossFigures | None


class MemoryFigures(TypedDict, total=False):
    """Predicted, measured and budget; parts, at and headline only where it was predicted."""

    predicted_bytes: int | None
    predicted_low_bytes: int | None
    predicted_high_bytes: int | None
    measured_bytes: int | None
    measured_by: str | None
    error_percent: float | None
    budget_bytes: int | None
    by_source: Mapping[str, int]
    peak_step: int | None
    peak_step_source: str | None
    parts: Mapping[str, int]
    at: str
    headline: str


class RunReport(TypedDict, total=False):
    """A whole report has all but the last eight, which a run without an outcome has besides."""

    schema_version: int
    run: str
    folder: str
    job: str
    variant: str
    plan_hash: str
    state: str
    came_in: str | None
    plan: PlanLines
    data: object
    result: dict[str, object]
    failure: dict[str, object] | None
    queue: dict[str, object] | None
    losses: LossFigures | None
    trainings: list[TrainingFigures]
    stage: str | None
    eval_loss: float | None
    events: list[EventRecord]
    memory: MemoryFigures
    checkpoints: list[str]
    termination: OutcomeRecord | None
    goes_on_by: str | None
    damaged: list[str]
    last_phase: str | None
    last_sign_unix_seconds: float | None
    whole_checkpoint: str | None
    damaged_checkpoints: Sequence[str]
    steps_logged: int
    steps_lost: int
    living_engines: Sequence[int]
    living_processes: Sequence[int]
    max_steps: int | None
