"""How far a download is: one line a file on stderr, rewritten where that is a terminal.

Standard library and runner.common.terminal, units.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from runner.common import terminal
from runner.common.units import format_bytes, format_duration

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 10.0
"""Between lines where stderr is a file or a pipe, which keeps every one of them."""


class FileProgress:
    """One file: bytes, rate, time left."""

    def __init__(
        self,
        name: str,
        total_bytes: int | None,
        *,
        had_bytes: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        """`had_bytes` of it were here before, and don't count for the rate."""
        self.name, self.total = name, total_bytes
        self.bytes = had_bytes
        self._had, self._quiet = had_bytes, quiet
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._began = self._said = time.monotonic()

    def update(self, more: int) -> None:
        """`more` bytes came; below zero where some that were here had to be dropped."""
        self.bytes += more
        self._had = min(self._had, self.bytes)
        now = time.monotonic()
        if now - self._said >= (TERMINAL_SECONDS if self._live else LOG_SECONDS):
            self._said = now
            self._write(self.line(now - self._began), last=False)

    def end(self) -> None:
        """It is whole."""
        seconds = time.monotonic() - self._began
        resumed = f", {_size(self._had)} of it before" if self._had else ""
        self._write(f"  {self.name}  {_size(self.bytes)} in {seconds:.1f} s{resumed}", last=True)

    def line(self, seconds: float) -> str:
        """How far it is after `seconds`."""
        rate = (self.bytes - self._had) / seconds if seconds > 0 else 0.0
        parts = [f"  {self.name}  {_size(self.bytes)}"]
        if self.total:
            parts[0] += f" of {_size(self.total)}"
        if rate > 0:
            parts.append(f"{_size(int(rate))}/s")
            if self.total:
                parts.append(f"{format_duration(max(0, self.total - self.bytes) / rate)} left")
        return " · ".join(parts)

    def _write(self, text: str, *, last: bool) -> None:
        if self._quiet:
            return
        # a terminal's line is wiped and written over; a log gets one line after the other
        if self._live and not last:
            terminal.draw_line(text, self._stream)
            return
        if self._live:
            terminal.erase_line(self._stream)
        terminal.put(text, stream=self._stream)


def _size(size: int) -> str:
    return f"{size} B" if size < 1024 else format_bytes(size)
