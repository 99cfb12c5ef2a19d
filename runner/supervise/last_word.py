"""termination.json, written last of all, on a full disk too. Imports runner.durable and outcome.

Others may fill what the run gives back before its end, so the verdict has a place of its own, taken
at the start: written over in place and renamed, it needs no block that is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
from types import TracebackType
from typing import Self

from runner import durable, terminal
from runner.folder import RunFolder
from runner.outcome import Outcome

PLACE_BYTES = 32 * 1024


class LastWord:
    """The place of the verdict. A context manager: left, what was not used of it is gone."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._place = folder.path / ".verdict"

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # full already: then the run fails by itself
            self._place.write_bytes(b" " * PLACE_BYTES)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._place.unlink(missing_ok=True)

    def say(self, outcome: Outcome) -> None:
        """Write the verdict; where that is not possible at all, it stands in the log alone."""
        record = outcome.to_record()
        try:
            durable.write_json(self._folder.termination, record)
            return
        except OSError as error:
            why = error
        try:
            self._write_over(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        except (OSError, ValueError):
            terminal.say(f"error: termination.json can't be written: {why}")
            terminal.say(json.dumps(record))

    def _write_over(self, content: bytes) -> None:
        """Raises OSError, ValueError where the place is too small."""
        with self._place.open("r+b") as stream:
            if len(content) > os.fstat(stream.fileno()).st_size:
                raise ValueError(f"{len(content)} bytes")
            stream.write(content)
            stream.flush()
            stream.truncate()
            os.fsync(stream.fileno())
        self._place.rename(self._folder.termination)
        durable.fsync_folder(self._folder.path)
