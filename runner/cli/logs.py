"""`runner logs RUN`: print the trainer's or the supervisor's log; -f follows it to the end.

A log can contain anything that a model, rows or libraries print, so control characters are escaped;
`--raw` passes its bytes on unchanged.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from pathlib import Path

from runner.common import durable, terminal
from runner.common.errors import UsageError
from runner.common.output import Output
from runner.common.units import format_bytes
from runner.launch.wait import states
from runner.runs.find import default_root, find_run
from runner.runs.folder import RunFolder
from runner.runs.state import QUEUED, state_of

_AT_ONCE_BYTES = 1 << 20
SHOWN_BYTES = 64 << 20
"""Of a log so much of its end is shown; a trainer that prints without end makes far more."""
DOCUMENT_BYTES = 16 << 20
"""The same of a log in one JSON document, which is held in memory."""
LINE_LETTERS, JSON_LINE_LETTERS = 64 << 10, 1 << 20
"""Of a line so much is shown."""
_COLOURS = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]")
"""ANSI's sequences for colours and the cursor, which say nothing in a text."""


class LogTail:
    """The bytes that were appended to a log since the last look."""

    def __init__(self, path: Path, newest_bytes: int | None = None) -> None:
        """At first so many of its last bytes, from a line's begin; None is all of it."""
        self._path, self._newest = path, newest_bytes
        self._offset: int | None = None
        self.left_out_bytes = 0
        """What of its begin is not shown."""

    def read(self) -> bytes:
        """Up to 1 MiB; empty where there is nothing new, or no such file."""
        try:
            with durable.open_record(self._path) as stream:
                size = os.fstat(stream.fileno()).st_size
                if self._offset is None:
                    self._offset = 0
                    if self._newest is not None and size > self._newest:
                        stream.seek(size - self._newest)
                        passed = len(stream.readline(LINE_LETTERS))
                        self._offset = self.left_out_bytes = size - self._newest + passed
                elif size < self._offset:
                    self._offset = 0  # another start has begun it anew
                stream.seek(self._offset)
                found = stream.read(_AT_ONCE_BYTES)
        except OSError:
            return b""
        self._offset += len(found)
        return found


class Lines:
    """The lines of a log that comes in pieces; of one that is too long the rest is counted only."""

    def __init__(self, *, drawn: bool) -> None:
        """With `drawn` a line is what a terminal would show in the end: what stands after \\r."""
        self._drawn, self._letters = drawn, LINE_LETTERS if drawn else JSON_LINE_LETTERS
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest, self._dropped = "", 0

    def take(self, content: bytes) -> list[str]:
        """The lines that end in it."""
        *ended, rest = self._decoder.decode(content).split("\n")
        lines = []
        for piece in ended:
            self._add(piece)
            lines.append(self.unfinished)
            self._rest, self._dropped = "", 0
        self._add(rest)
        return lines

    @property
    def unfinished(self) -> str:
        """What there is of a line that has not ended; empty where there is none."""
        line = _last_drawn(self._rest) if self._drawn else self._rest
        return line + (f" … {self._dropped:,} characters more" if self._dropped else "")

    def _add(self, piece: str) -> None:
        if self._drawn:
            begins = piece.rstrip("\r").rfind("\r") + 1
            # a \r at the very end may be that of a \r\n: only what follows draws the line anew
            if begins or (self._rest.endswith("\r") and piece.strip("\r")):
                self._rest, self._dropped, piece = "", 0, piece[begins:]
        self._rest += piece
        over = len(self._rest) - self._letters
        if over > 0:
            back = "\r" if self._rest.endswith("\r") else ""
            self._rest, self._dropped = self._rest[:-over] + back, self._dropped + over


def _last_drawn(line: str) -> str:
    """What a progress bar showed last, without sequences for colours."""
    return _COLOURS.sub("", line.rstrip("\r").rpartition("\r")[2])


def show_log(
    run: str, *, follow: bool, supervisor: bool, raw: bool, runs: Path | None, as_json: bool
) -> int:
    """Print the log; with `follow` what is added too, until the run has ended. Exit code 0.

    Args:
        raw: its bytes as they are, for a pipe.

    Raises:
        UsageError: `raw` and `as_json` exclude each other.
        RefusedError, RunnerError: as until_over.states, with `follow`.
    """
    if raw and as_json:
        raise UsageError("--raw and --json exclude each other: expected one of them")
    out, whole = Output(as_json=as_json), as_json and not follow
    folder = find_run(run, runs or default_root())
    path = folder.supervisor_log if supervisor else folder.train_log
    tail = LogTail(path, None if raw else DOCUMENT_BYTES if whole else SHOWN_BYTES)

    why = _why_none(folder, path)
    if why is not None:
        out.say(why)
    if whole:
        _document(folder, path, tail, out)
        return 0
    show = _Raw() if raw else _JsonLines() if as_json else _Text(live=follow)
    for _state in states(folder) if follow else ("",):
        while found := tail.read():
            _tell_left_out(tail, path, out)
            show.take(found)
        show.pause()
    show.close()
    return 0


def _document(folder: RunFolder, path: Path, tail: LogTail, out: Output) -> None:
    lines, found = Lines(drawn=False), []
    while content := tail.read():
        _tell_left_out(tail, path, out)
        found += lines.take(content)
    found += [lines.unfinished] if lines.unfinished else []
    shown = [part for line in found for part in line.splitlines() or [""]]
    out.result({"run": folder.name, "file": str(path), "lines": shown}, [])


def _tell_left_out(tail: LogTail, path: Path, out: Output) -> None:
    if tail.left_out_bytes:
        out.say(
            f"the first {format_bytes(tail.left_out_bytes)} of {path.name} are left out; "
            "--raw gives all of it"
        )
        tail.left_out_bytes = 0


def _why_none(folder: RunFolder, path: Path) -> str | None:
    """Why there is no log to show; None where there is one."""
    try:
        durable.open_record(path).close()
    except FileNotFoundError:
        state = state_of(folder)
        return f"{folder.name} has no such log: it " + (
            "waits for a GPU" if state == QUEUED else f"is {state.replace('_', ' ')}"
        )
    except OSError as error:
        return f"{path.name} of {folder.name} can't be read: {error.strerror}"
    return None


class _Raw:
    """Bytes as they are."""

    def take(self, content: bytes) -> None:
        terminal.put_raw(content)

    def pause(self) -> None:
        """Nothing more has come for now."""

    def close(self) -> None:
        """Nothing more will come."""


class _Text(_Raw):
    """Lines for people; one that has not ended is drawn in a terminal, and waits elsewhere."""

    def __init__(self, *, live: bool) -> None:
        self._lines = Lines(drawn=True)
        self._live = live and sys.stdout.isatty()
        self._shown = ""

    def take(self, content: bytes) -> None:
        lines = self._lines.take(content)
        if lines:
            self._erase()
            terminal.put("\n".join(lines))

    def pause(self) -> None:
        rest = self._lines.unfinished
        if self._live and rest != self._shown:
            terminal.draw_line(rest, sys.stdout)
            self._shown = rest

    def close(self) -> None:
        self._erase()
        rest = self._lines.unfinished
        if rest:
            terminal.put(rest, end="")  # as it lies there

    def _erase(self) -> None:
        if self._shown:
            terminal.erase_line(sys.stdout)
            self._shown = ""


class _JsonLines(_Raw):
    """A line of JSON for each line of the log, once it is whole."""

    def __init__(self) -> None:
        self._lines = Lines(drawn=False)

    def take(self, content: bytes) -> None:
        for line in self._lines.take(content):
            terminal.put_json({"line": line})

    def close(self) -> None:
        rest = self._lines.unfinished
        if rest:
            terminal.put_json({"line": rest})
