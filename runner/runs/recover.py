"""Clean up what a kill left unfinished in a run folder, or restore it, before the next start.

Imports the standard library and runner.runs.folder, staged_folder. Called while nobody else writes
in the folder. Files of a user's script or a tracker are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from runner.common.staged_folder import REPLACED as REPLACED
from runner.common.staged_folder import replaced_of as replaced_of
from runner.runs.folder import RunFolder

_PATTERNS = (".*.tmp", ".staging-*", ".*-staging", ".*.staging", ".*.replaced", ".reserve*")


def clear(folder: RunFolder) -> list[str]:
    """Remove temporary files and staging folders; the names of those removed, within the run.

    What had been moved out of the way for a successor that never took its place is moved back
    first. Nothing is looked for behind a link. Raises OSError where the disk refuses.
    """
    for old in _replaced(folder):
        final = _place_of(old, folder)
        if not folder.is_there(final):
            folder.move(old, final)
    removed = []
    for path in sorted(set(_half_made(folder))):
        folder.remove(path)
        removed.append(str(path.relative_to(folder.path)))
    return removed


def staging_of(final: Path) -> Path:
    """Where a run's result is written before it takes its place at `final`."""
    return final.with_name(f".{final.name}-staging")


def _replaced(folder: RunFolder) -> list[Path]:
    found = []
    for staging in _named(folder, folder.checkpoints, ".staging-*"):
        found += _named(folder, staging, f"*{REPLACED}")
    return [*found, *_named(folder, folder.path, f".*{REPLACED}")]


def _place_of(old: Path, folder: RunFolder) -> Path:
    name = old.name.removesuffix(REPLACED)
    if old.parent == folder.path:
        return folder.path / name.removeprefix(".")
    return folder.checkpoints / name


def _half_made(folder: RunFolder) -> Iterator[Path]:
    for place in (folder.path, folder.engine, folder.checkpoints, folder.logs, folder.row_hashes):
        for pattern in _PATTERNS:
            yield from _named(folder, place, pattern)
    for place in (folder.phases, folder.attempts):
        yield from _named(folder, place, ".*")


def _named(folder: RunFolder, place: Path, pattern: str) -> list[Path]:
    return [place / name for name in folder.names(place) if fnmatchcase(name, pattern)]
