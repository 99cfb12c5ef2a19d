"""The result of a download, and the disk space that it needs. Standard library only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.common.errors import RefusedError
from runner.common.units import format_bytes
from runner.fetch.files import RemoteFile, combined_sha256

SPARE_BYTES = 256 * 1024 * 1024
"""Left free beside what is fetched: runs write their records to the same disk, often."""


@dataclass(frozen=True)
class Fetched:
    """What one thing to fetch has become."""

    place: Path
    """The model's folder, or the Parquet file of the rows."""
    revision: str
    """The commit; on ModelScope, which names none, what was asked for and the content's hash."""
    size_bytes: int
    fetched_bytes: int
    """That came over the network this time."""
    sha256: str | None
    """Of the weights or rows; of several files the hash of their list."""
    rows: int | None = None

    def to_record(self) -> dict[str, object]:
        """As the process that asked reads it."""
        return {
            "place": str(self.place),
            "revision": self.revision,
            "size_bytes": self.size_bytes,
            "fetched_bytes": self.fetched_bytes,
            "sha256": self.sha256,
            "rows": self.rows,
        }


def weights_sha256(files: Sequence[RemoteFile]) -> str | None:
    """The one file's hash, or that of the list; None where the listing states none."""
    stated = [(file.path, file.sha256) for file in files if file.sha256]
    if len(stated) != len(files) or not stated:
        return None
    return stated[0][1] if len(stated) == 1 else combined_sha256(stated)


def require_room(what: str, missing_bytes: int, folder: Path) -> None:
    """Refuse (RefusedError) where the file system of `folder` can't hold what is still to come."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(place).free
    if missing_bytes > 0 and missing_bytes + SPARE_BYTES > free:
        raise RefusedError(
            f"{what} takes {format_bytes(missing_bytes)} more, and {place} has "
            f"{format_bytes(free)} free ({format_bytes(SPARE_BYTES)} of it are kept free)",
            "make room, or name another disk in HF_HOME (the hub's cache) or RUNNER_CACHE",
        )
