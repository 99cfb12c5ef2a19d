"""How long steps, evaluations and saves take. Pure: it is told the time. Standard library only."""

from __future__ import annotations

import math
import statistics
from typing import Any


class Throughput:
    """Adds up the seconds between the events of a training, by what happened in them.

    The time from one event to the next belongs to the later one: what lies before a step's end
    is that step, whatever was logged, evaluated or saved before has its own event.
    """

    def __init__(self) -> None:
        self._mark: float | None = None
        self._steps: list[float] = []
        self._tokens = 0
        self._evaluation = 0.0
        self._saving = 0.0

    def start(self, now: float) -> None:
        """Training begins, or something ended that counts for nothing."""
        self._mark = now

    def stop(self) -> None:
        """Training is over; what comes after is not counted."""
        self._mark = None

    def step(self, now: float) -> None:
        if self._mark is not None:
            self._steps.append(now - self._mark)
            self._mark = now

    def evaluated(self, now: float) -> None:
        if self._mark is not None:
            self._evaluation += now - self._mark
            self._mark = now

    def saved(self, now: float) -> None:
        if self._mark is not None:
            self._saving += now - self._mark
            self._mark = now

    def count(self, tokens: int) -> None:
        """Tokens that went through the model in training, of all processes together."""
        self._tokens += tokens

    @property
    def training_seconds(self) -> float:
        """Seconds spent in training steps so far."""
        return math.fsum(self._steps)

    def statistics(self) -> dict[str, Any]:
        """The figures of result.json, in seconds and tokens a second; null where there are none."""
        seconds = self.training_seconds
        return {
            "steps": len(self._steps),
            "seconds_per_step_median": _rounded(_median(self._steps)),
            "seconds_per_step_p95": _rounded(percentile(self._steps, 0.95)),
            "tokens_per_second": round(self._tokens / seconds, 1) if seconds else None,
            "training_seconds": _rounded(seconds),
            "evaluation_seconds": _rounded(self._evaluation),
            "saving_seconds": _rounded(self._saving),
        }


def percentile(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
