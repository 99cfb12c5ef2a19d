"""Read what was appended to a run's files since the last read.

Imports the standard library and runner.common.durable. A pipe or a link in a file's place gives
nothing; an endless line is skipped, so that no read takes more than a fixed amount of memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from runner.common import durable


class Tail:
    """The records that were appended to a JSONL file since the last look."""

    def __init__(self, path: Path, *, newest_bytes: int | None = None) -> None:
        """At first so many of its last bytes are looked at; None is all of it."""
        self._path, self._newest = path, newest_bytes
        self._offset: int | None = None
        self._passing = False
        """Within a line that is too long."""
        if newest_bytes == 0:
            self._begin_at_the_end()

    def read(self, at_most_bytes: int = durable.MAX_JSONL_BYTES) -> Iterator[dict[str, object]]:
        """New whole lines, one by one; a line in mid-write waits for the next look.

        What is over `at_most_bytes` waits too.
        """
        try:
            stream = durable.open_record(self._path)
        except OSError:
            return
        with stream:
            size = os.fstat(stream.fileno()).st_size
            if self._offset is None:
                self._offset = max(0, size - (size if self._newest is None else self._newest))
                self._passing = self._offset > 0  # from the middle of a line
            elif size < self._offset:
                self._offset, self._passing = 0, False  # a new start has a new file
            stream.seek(self._offset)
            left = at_most_bytes
            while left > 0 and (line := stream.readline(durable.MAX_LINE_BYTES)):
                ended = line.endswith(b"\n")
                if not ended and len(line) < durable.MAX_LINE_BYTES and not self._passing:
                    return
                if self._passing or not ended:  # a hole, perhaps: little of it at each look
                    left = min(left, durable.MAX_PASSED_BYTES)
                left -= max(len(line), durable.SHORTEST_LINE_BYTES)
                self._offset += len(line)
                whole = ended and not self._passing
                self._passing = not ended
                record = durable.parse_line(line) if whole else None
                if record is not None:
                    yield record

    def _begin_at_the_end(self) -> None:
        self._offset = 0
        try:
            self._offset = os.lstat(self._path).st_size
        except OSError:
            return
