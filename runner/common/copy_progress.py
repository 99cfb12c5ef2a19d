"""Redraw one line on a terminal while something large is copied. Imports runner.common.terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from runner.common import terminal
from runner.common.units import format_bytes

_REDRAW_SECONDS = 0.2


class LiveLine:
    """One line on a terminal that is redrawn; nothing elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._drawn = 0.0

    def draw(self, text: str) -> None:
        now = time.monotonic()
        if self._live and now - self._drawn >= _REDRAW_SECONDS:
            terminal.draw_line(text)
            self._drawn = now

    def clear(self) -> None:
        if self._live:
            terminal.erase_line()

    def bytes(self, what: str, whole: int | None) -> Callable[[int], None]:
        """A progress function that tells bytes handled, of how many where that is known."""
        of = f" of {format_bytes(whole)}" if whole else ""
        return lambda done: self.draw(f"{what}  {format_bytes(done)}{of}")
