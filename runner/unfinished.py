"""What a kill left half made in a run folder: cleared before the next start, or put back.

Imports the standard library and runner.folder. Called where nobody else writes in the folder. What
a user's script or a tracker keeps there is not looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from runner.folder import RunFolder

_PATTERNS = (".*.tmp", ".staging-*", ".*-staging", ".*.staging", ".*.replaced", ".reserve*")
REPLACED = ".replaced"
"""Ends the name that a finished folder has while a newer one takes its place."""


def clear(folder: RunFolder) -> list[str]:
    """Remove temporary files and staging folders; the names of those removed, within the run.

    What had been moved out of the way for a successor that never took its place is moved back
    first. Raises OSError where the disk refuses.
    """
    for old in _replaced(folder):
        final = _place_of(old, folder)
        if not final.exists():
            old.rename(final)
    removed = []
    for path in sorted(_half_made(folder)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        removed.append(str(path.relative_to(folder.path)))
    return removed


def staging_of(final: Path) -> Path:
    """Where a run's result is written before it takes its place at `final`."""
    return final.with_name(f".{final.name}-staging")


def replaced_of(final: Path) -> Path:
    """Where what stood at `final` lies for the instant in which another takes its place."""
    return final.with_name(f".{final.name}{REPLACED}")


def _replaced(folder: RunFolder) -> Iterator[Path]:
    if not folder.checkpoints.is_symlink():
        for staging in folder.checkpoints.glob(".staging-*"):
            if not staging.is_symlink():
                yield from staging.glob(f"*{REPLACED}")
    yield from folder.path.glob(f".*{REPLACED}")


def _place_of(old: Path, folder: RunFolder) -> Path:
    name = old.name.removesuffix(REPLACED)
    if old.parent == folder.path:
        return folder.path / name.removeprefix(".")
    return folder.checkpoints / name


def _half_made(folder: RunFolder) -> Iterator[Path]:
    for place in (folder.path, folder.engine, folder.checkpoints, folder.logs, folder.row_hashes):
        for pattern in _PATTERNS if not _is_planted(place, folder) else ():
            yield from place.glob(pattern)
    for place in (folder.phases, folder.attempts):
        yield from place.glob(".*") if not place.is_symlink() else ()


def _is_planted(place: Path, folder: RunFolder) -> bool:
    """Whether a folder in the run is a link: a run's own code can have put it there."""
    return place != folder.path and place.is_symlink()
