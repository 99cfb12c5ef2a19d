"""Types of what the predicting process (engines/sft/inside/memory) is asked, and answers.

Imports the standard library. `overrides` are dotted fields of a job to their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class BatchAsked(TypedDict):
    """The longest batch of one training."""

    tokens: int
    images: int
    because: str


class FitAsked(TypedDict):
    """To find the fastest plan under a budget; allow and models are of the job's `fit`."""

    budget_bytes: int
    allow: Sequence[str]
    models: Sequence[str]
    correction: dict[str, object] | None


class CheapestAsked(TypedDict):
    """To find the cheapest changes that fit under a limit."""

    limit_bytes: int
    count: int
    correction: dict[str, object] | None


class _StageAsked(TypedDict):
    name: str
    training: int
    method: Literal["lora", "full"]
    rows: int
    tokens: int


class StageAsked(_StageAsked, total=False):
    """To predict one training of the MGM toolkit; `adam` is "host" where it isn't given."""

    adam: Literal["host", "card"]


class Question(TypedDict, total=False):
    """What is asked beside a plan; without any of it, the plan's prediction."""

    fit: FitAsked | None
    cheapest: CheapestAsked | None
    mgm: list[StageAsked] | None


class _Request(TypedDict):
    plan: str
    batches: list[BatchAsked] | None


class Request(_Request, Question):
    """The file that is handed over: `plan` is a plan.yaml's path, batches None to find them."""


class LadderOption(TypedDict):
    """One way to train: settings and changes in words, and what it takes."""

    text: str
    base: str
    peak_bytes: int
    time: float
    changes: str
    fits: bool
    allowed: bool
    exact: bool


class FittedTraining(TypedDict):
    """One training's options, and the index of the one chosen; None where none fits."""

    phase: str
    effective_batch: int
    ladder: list[LadderOption]
    chosen: int | None
    prediction: dict[str, object] | None
    overrides: dict[str, object]
    allowed_would_fit: list[str]


class FitAnswer(TypedDict):
    """What `fit` answers."""

    budget_bytes: int
    trainings: list[FittedTraining]
    overrides: dict[str, object]


class Change(TypedDict):
    """A change that would have fitted; others of an option's fields are handed on."""

    text: str
    peak_bytes: int
    time: float
    changes: str
    overrides: dict[str, object]


class FoundChange(LadderOption):
    """A change as it is answered, with the training that it is of."""

    phase: str
    overrides: dict[str, object]


class CheapestAnswer(TypedDict):
    """What `cheapest` answers."""

    changes: list[Change]
