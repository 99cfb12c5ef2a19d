"""The figures of a run's metrics.jsonl: losses and rates, of each training apart too.

Imports the standard library, runner.common and runs.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.common import durable
from runner.report.run_report import LossFigures, TrainingFigures
from runner.runs.folder import RunFolder
from runner.runs.metrics import is_loss_line
from runner.runs.record_types import LossLine
from runner.runs.records import number


@dataclass
class Losses:
    """The figures of a metrics.jsonl, of which there may be millions; of each phase apart too."""

    losses: array[float] = field(default_factory=lambda: array("d"))
    """NaN is one that was not finite."""
    rates: array[float] = field(default_factory=lambda: array("d"))
    first: float | None = None
    last: float | None = None
    last_step: int = 0
    eval_loss: float | None = None
    phases: dict[str, Losses] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: RunFolder, planned: Mapping[str, int | None]) -> Losses:
        """`planned`: the trainings of a run with several, by name."""
        found = cls(phases={name: cls() for name in planned})
        for line in durable.read_jsonl(folder.metrics):
            if number(eval_loss := line.get("eval_loss")):
                found.eval_loss = eval_loss
            if is_loss_line(line):
                found._add(line)
                phase = found.phases.get(str(line.get("phase")))
                if phase is not None:
                    phase._add(line)
        return found

    def _add(self, line: LossLine) -> None:
        loss = line["loss"] if number(line["loss"]) else None
        self.first = self.first if self.losses else loss
        self.last, self.last_step = loss, line["step"]
        self.losses.append(math.nan if loss is None else loss)
        rate = line.get("tokens_per_second")
        self.rates.append(float(rate) if number(rate) else 0.0)

    def to_record(self) -> LossFigures | None:
        if not self.losses:
            return None
        return {
            "logged_steps": len(self.losses),
            "first": self.first,
            "last": self.last,
            "last_step": self.last_step,
            "median_tokens_per_second": sorted(self.rates)[len(self.rates) // 2],
            "curve": sparkline(self.losses),
        }

    def trainings(self, planned: Mapping[str, int | None]) -> list[TrainingFigures]:
        """Each training of a run with several, its steps counted from its own start."""
        found: list[TrainingFigures] = []
        before = 0
        for name, steps in planned.items():
            one = self.phases[name]
            done = max(0, one.last_step - before) if one.losses else 0
            losses = one.to_record()
            found.append({"name": name, "steps": done, "max_steps": steps, "losses": losses})
            before = max(before, one.last_step)
        return found


def sparkline(values: Sequence[float | None], width: int = 60) -> str:
    """A line of bars; several values share a bar by their mean. None (not finite) shows as !."""
    if not values:
        return ""
    count = min(width, len(values))
    means = [
        _mean(values[i * len(values) // count : (i + 1) * len(values) // count])
        for i in range(count)
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return "!" * count
    low, high = min(finite), max(finite)
    bars = "▁▂▃▄▅▆▇█"
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(
        bars[round((mean - low) * scale)] if math.isfinite(mean) else "!" for mean in means
    )


def _mean(group: Sequence[float | None]) -> float:
    """NaN where a value is none."""
    return sum(math.nan if value is None else value for value in group) / len(group)
