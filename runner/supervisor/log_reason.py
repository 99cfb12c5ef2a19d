"""Find why a run ended in its own log: the last error, in a line.

Reads a log's end; imports runner.common.durable and runner.common.terminal. A log is foreign text:
it is cleaned and cut here, and the caller removes secrets.
"""

from __future__ import annotations

import re
from pathlib import Path

from runner.common import durable
from runner.common.terminal import clean_line

TAIL_BYTES = 256 << 10
LONGEST = 300
_LAST_LINES = 30
_TRACEBACK = "Traceback (most recent call last):"
_RANK = re.compile(r"^\[(?:rank\d+|default\d+)\]:\s?")
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?:: (.*)|:?)$")
# What a launcher raises when a process of its ended: the reason stands before.
_LAUNCHERS = ("CalledProcessError", "ChildFailedError", "SystemExit", "KeyboardInterrupt")
_TELLING = re.compile(
    r"\berror\b|\bfatal\b|not found|no such|permission denied|cannot |can't |core dumped|killed",
    re.IGNORECASE,
)


def log_reason(log: Path, start: int = 0) -> str | None:
    """The last error that was written to `log` behind byte `start`; None where none is known.

    Of a traceback it is the exception with its message, of anything else the last line that speaks
    of an error.
    """
    found = reason_of(_tail(log, start))
    if found is None:
        return None
    found = clean_line(found.strip())
    return found if len(found) <= LONGEST else found[: LONGEST - 3] + "..."


def reason_of(text: str) -> str | None:
    """The same, of a text."""
    # a progress bar goes back to the line's start: what stands last is what is seen
    shown = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    lines = [_RANK.sub("", line).rstrip() for line in shown]
    starts = [number for number, line in enumerate(lines) if line.strip() == _TRACEBACK]
    for start in reversed(starts):
        raised = _raised(lines[start + 1 :])
        if raised is not None:
            return raised
    for line in reversed([line for line in lines if line.strip()][-_LAST_LINES:]):
        if _TELLING.search(line):
            return line
    return None


def _raised(lines: list[str]) -> str | None:
    """The line with the exception behind a traceback's frames; None for a launcher's own."""
    for line in lines:
        if not line or line[0] in " \t|+":  # frames, and what groups of exceptions draw
            continue
        match = _RAISED.match(line)
        if match is None or match[1] in _LAUNCHERS:
            return None
        return line if match[2] else match[1]
    return None


def _tail(log: Path, start: int) -> str:
    """The end of a log, TAIL_BYTES at most; "" where it can't be read."""
    try:
        with durable.open_record(log) as stream:
            stream.seek(0, 2)
            end = stream.tell()
            stream.seek(max(min(start, end), end - TAIL_BYTES))
            return stream.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
