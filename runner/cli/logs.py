"""`runner logs RUN`: what the trainer printed, or the supervisor; -f follows to the run's end."""

from __future__ import annotations

import codecs
import json
import sys
from pathlib import Path

from runner.cli.output import Output
from runner.cli.until_over import states
from runner.folder import RunFolder, default_root, find_run
from runner.state import QUEUED, state_of

_AT_ONCE_BYTES = 1 << 20


class LogTail:
    """The text that was appended to a log since the last look; a character cut in two waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self) -> str:
        """Up to 1 MiB; empty where there is nothing new, or no such file."""
        try:
            with self._path.open("rb") as stream:
                if self._path.stat().st_size < self._offset:
                    self._offset = 0  # another start has begun it anew
                stream.seek(self._offset)
                found = stream.read(_AT_ONCE_BYTES)
        except OSError:
            return ""
        self._offset += len(found)
        return self._decoder.decode(found)


def show_log(run: str, *, follow: bool, supervisor: bool, runs: Path | None, as_json: bool) -> int:
    """Print the log; with `follow` what is added too, until the run has ended. Exit code 0.

    Raises:
        RefusedError, RunnerError: as until_over.states, with `follow`.
    """
    out = Output(as_json=as_json)
    folder = find_run(run, runs or default_root())
    path = folder.supervisor_log if supervisor else folder.train_log
    tail = LogTail(path)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    if not path.exists():
        out.say(_why_none(folder))
    if follow:
        lines = _Lines() if as_json else None
        for _state in states(folder):
            while text := tail.read():
                _print(text, lines)
        if lines is not None:
            lines.close()
        return 0
    if as_json:
        text = "".join(iter(tail.read, ""))
        record = {"run": folder.name, "file": str(path), "lines": text.splitlines()}
        out.result(record, [])
        return 0
    while text := tail.read():
        _print(text, None)
    return 0


def _why_none(folder: RunFolder) -> str:
    state = state_of(folder)
    return f"{folder.name} has no such log: it " + (
        "waits for a GPU" if state == QUEUED else f"is {state.replace('_', ' ')}"
    )


class _Lines:
    """A line of JSON for each line of the log, once it is whole."""

    def __init__(self) -> None:
        self._rest = ""

    def take(self, text: str) -> None:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            print(json.dumps({"line": line}, ensure_ascii=False))

    def close(self) -> None:
        if self._rest:
            self.take("\n")
        sys.stdout.flush()


def _print(text: str, lines: _Lines | None) -> None:
    if lines is None:
        sys.stdout.write(text)
    else:
        lines.take(text)
    sys.stdout.flush()
