"""Each training of a run by itself: its steps and losses, from the run's records.

A run may have several (phases, the stages of a toolkit), whose steps count on in metrics.jsonl.
Pure; imports runner.runs.records and record_types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from runner.runs.record_types import LossLine, TrainingRecord
from runner.runs.records import number


@dataclass(frozen=True)
class Training:
    """One training of a run; None is what is not known."""

    name: str
    steps: int
    """Done of it, as last logged."""
    max_steps: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None

    def to_record(self) -> TrainingRecord:
        """JSON-ready."""
        return {
            "name": self.name,
            "steps": self.steps,
            "max_steps": self.max_steps,
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
        }

    @property
    def count(self) -> str:
        """ "3/39"."""
        return f"{self.steps}/{self.max_steps}" if self.max_steps else f"{self.steps}"


def trainings_of(lines: Iterable[LossLine], planned: Mapping[str, int | None]) -> list[Training]:
    """Each planned training, by the lines of metrics.jsonl, of which those of others don't count.

    A line's step counts on from the training before, whose last logged step is taken off.
    """
    last: dict[str, int] = {}
    losses: dict[str, list[float | None]] = {}
    for line in lines:
        name = str(line.get("phase"))
        if name in planned:
            last[name] = max(line["step"], last.get(name, 0))
            loss = line["loss"] if number(line["loss"]) else None
            losses.setdefault(name, [loss, loss])[1] = loss
    found, before = [], 0
    for name, steps in planned.items():
        done = max(0, last.get(name, before) - before)
        first, latest = losses.get(name, (None, None))
        found.append(Training(name, done, steps, first, latest))
        before = last.get(name, before)
    return found


def in_words(trainings: Iterable[TrainingRecord], figure: Callable[[float | None], str]) -> str:
    """ "pretrain 39 of 39, loss 6.93 → 4.2 · finetune 3 of 93, loss 4.1 → 4"; "" of none.

    `figure` turns a loss into text. What was not begun has no loss.
    """
    parts = []
    for one in trainings:
        most = f" of {one['max_steps']}" if one.get("max_steps") else ""
        loss = f", loss {figure(one.get('first_loss'))} → {figure(one.get('last_loss'))}"
        parts.append(f"{one['name']} {one['steps']}{most}" + (loss if one["steps"] else ""))
    return " · ".join(parts)
