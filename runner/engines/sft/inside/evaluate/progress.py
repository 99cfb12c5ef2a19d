"""How far an evaluation is: one line on stderr.

Standard library and runner.common.terminal, units.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from runner.common import terminal
from runner.common.units import format_duration

SECONDS_BETWEEN_LINES = 15.0  # where stderr is no terminal, and every line stays


class Progress:
    """Counts rows and their cost, and writes a line now and then.

    Rows come longest first, so the time left goes by cost (tokens read and written at most), not
    by rows: by rows it would be far too long at first.
    """

    def __init__(
        self,
        rows: int,
        cost: float,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = rows
        self._cost = cost
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started = clock()
        self._written = self._started
        self._live = self._stream.isatty()
        self.done = 0
        self._spent = 0.0

    def add(self, rows: int, cost: float) -> None:
        """So many rows more are done."""
        self.done += rows
        self._spent += cost
        now = self._clock()
        if self._live or now - self._written >= SECONDS_BETWEEN_LINES:
            self._written = now
            if self._live:
                terminal.draw_line(self.line(), self._stream)
            else:
                terminal.put(self.line(), stream=self._stream)

    def line(self) -> str:
        """ "evaluating 128 of 805 rows, 3.2 rows/s, 3:31 left"."""
        seconds = max(self._clock() - self._started, 1e-9)
        text = f"evaluating {self.done:,} of {self._rows:,} rows, {self.done / seconds:.1f} rows/s"
        if self._spent:
            left = seconds * max(self._cost - self._spent, 0) / self._spent
            text += f", {format_duration(left)} left"
        return text

    def end(self) -> None:
        """Leave the line."""
        if self._live and self.done:
            terminal.put("", stream=self._stream)
