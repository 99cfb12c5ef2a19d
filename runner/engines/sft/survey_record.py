"""Types of what the survey process says of a plan (engines/sft/inside/survey), read by launch/.

Imports the standard library. `object` is what is only handed on: into `runner check --json`.
"""

from __future__ import annotations

from typing import TypedDict


class CountedParameters(TypedDict):
    """Of a model with its adapter."""

    trainable: int
    total: int
    percent: float


class SurveyedTraining(TypedDict):
    """One training: its length in steps, its rows, parameters and the size of a checkpoint."""

    phase: str
    rows: int
    eval_rows: int
    global_batch: int
    steps_an_epoch: int
    steps: int
    passes: float
    saves: int
    kept: int
    data: RowsReport
    lines: list[str]
    parameters: CountedParameters
    checkpoint_bytes: int


class Survey(TypedDict):
    """The whole document; `memory` is a runner.vram.prediction, None where there is none."""

    notes: list[str]
    warnings: list[str]
    trainings: list[SurveyedTraining]
    memory: dict[str, object] | None
    disk_bytes: int


class SampleRow(TypedDict):
    """A row as the model sees it; each segment is a text and whether it carries loss."""

    line: int
    tokens: int
    supervised: int
    segments: list[list[object]]


class AuditedRows(TypedDict):
    """`train` in data.json, as far as `runner check` shows it; lengths are [low, high, rows]."""

    lengths: list[list[int]]
    samples: list[SampleRow]


class RowsReport(TypedDict, total=False):
    """A training's `data` (data.json), as far as others read it; the rest is handed on."""

    train: AuditedRows
    prepared_in: str
