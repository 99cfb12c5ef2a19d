"""When to sample next. Pure; standard library only."""

from __future__ import annotations

import math


class Schedule:
    """Absolute deadlines on the monotonic clock, so that slow samples don't shift later ones.

    Deadlines that had passed before they were waited for are skipped and counted in `overruns`.
    """

    def __init__(self, start_seconds: float) -> None:
        self._deadline_seconds = start_seconds
        self.overruns = 0

    def wait_seconds(self, now_seconds: float, interval_seconds: float) -> float:
        """Move to the next deadline; how long it is until then. The interval may change."""
        self._deadline_seconds += interval_seconds
        late = now_seconds - self._deadline_seconds
        if late > 0:
            missed = math.ceil(late / interval_seconds)
            self.overruns += missed
            self._deadline_seconds += missed * interval_seconds
        return max(0.0, self._deadline_seconds - now_seconds)
