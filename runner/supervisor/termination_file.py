"""Write termination.json last of all, on a full disk too.

Disk blocks for the outcome are reserved at the start: the reserved file is overwritten in place and
renamed, so it needs no free block. It is held open, so a process of the run that removes it, or
puts a link in its place, redirects nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from types import TracebackType
from typing import IO, Self

from runner.common import shared_folder, terminal
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome
from runner.supervisor.event_log import EventLog

PLACE_BYTES = 32 * 1024


class TerminationFile:
    """The place of the outcome. A context manager: left, what was not used of it is gone."""

    def __init__(self, folder: RunFolder) -> None:
        self._moved_aside: list[str] = []
        self._folder = replace(folder, told=self._moved_aside.append)
        self._place = folder.path / ".verdict"
        self._held: IO[bytes] | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # full already: then the run fails by itself
            self._folder.remove(self._place)
            self._held = self._folder.open_over(self._place)
            self._held.write(b" " * PLACE_BYTES)
            self._held.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def say(self, outcome: Outcome) -> None:
        """Write the outcome; where that is not possible at all, it stands in the log alone.

        What had to give way to it is told of in events.jsonl.
        """
        self._write(outcome.to_record())
        try:
            record = EventLog(self._folder) if self._moved_aside else None
        except OSError:
            record = None
        for text in self._moved_aside:
            shared_folder.say(text) if record is None else record.warn(text)
        self._moved_aside.clear()

    def _write(self, record: dict[str, object]) -> None:
        try:
            self._write_new(record)
            return
        except OSError as error:
            why = error
        try:
            self._write_over(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            return
        except (OSError, ValueError):
            self._give_back()  # room for one more try, where its name was taken from it
        try:
            self._write_new(record)
        except OSError:
            terminal.say(f"error: termination.json can't be written: {why}")
            terminal.say(json.dumps(record))

    def _write_new(self, record: dict[str, object]) -> None:
        """Raises OSError."""
        try:
            self._folder.write_json(self._folder.termination, record)
        except PermissionError:  # what ran may have taken the rights from its folder
            if not self._folder.make_writable():
                raise
            self._folder.told(f"{self._folder.path} could not be written; its rights are back")
            self._folder.write_json(self._folder.termination, record)

    def _write_over(self, content: bytes) -> None:
        """Raises OSError; ValueError where there is no place, or it is too small."""
        if self._held is None or not self._folder.is_same(self._place, self._held.fileno()):
            raise ValueError("no place")
        if len(content) > os.fstat(self._held.fileno()).st_size:
            raise ValueError(f"{len(content)} bytes")
        self._held.seek(0)
        self._held.write(content)
        self._held.flush()
        self._held.truncate()
        os.fsync(self._held.fileno())
        self._folder.move(self._place, self._folder.termination)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.remove(self._place, as_far_as_possible=True)
        if self._held is not None:
            with contextlib.suppress(OSError):
                self._held.close()
            self._held = None
