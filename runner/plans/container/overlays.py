"""Mount read-only, over the writable run folder, what the run's container must not change.

Standard library, runner.runs.folder and runner.plans.base only. A mount can be neither renamed,
unlinked nor replaced from inside. Where the host replaces a file by a rename, the kernel takes the
mount off it (since Linux 3.19): what the host changes while a container runs, it changes in place.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from runner.plans.base import PlannedMount
from runner.runs.folder import RunFolder

_RENDERED = ("plan.yaml", "launch.sh", "accelerate.yaml", "deepspeed.json", "mgm")
_SEAL = "origin.json"
_VERDICTS_PLACE = (".verdict", ".reserve")  # of the supervisor: room that a full disk can't take


def make_places(folder: RunFolder, *, earlier: bool = True) -> list[Path]:
    """Make what the host will write or look into, so that it can be overlaid; what was made.

    `earlier`: whether earlier/ is the host's alone. What is a link or of another kind goes: it was
    put there, and nothing of it is followed. Raises OSError.
    """
    made = []
    for place in (folder.logs, folder.engine, *_host_folders(folder, earlier=earlier)):
        if _kind(place) not in (None, stat.S_IFDIR):
            place.unlink()
        if _kind(place) is None:
            place.mkdir()
            made.append(place)
    for place in _host_files(folder):
        if _kind(place) not in (None, stat.S_IFREG):
            place.unlink()
        with contextlib.suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            os.close(os.open(place, flags, 0o644))
            made.append(place)
    return made


def run_overlays(
    folder: RunFolder, *, earlier: bool = True, expected: bool = False
) -> list[PlannedMount]:
    """Mounts over those of a run folder that is writable: control files and folders as they are
    now, read-only; logs/ and engine/, which the container writes, pinned where they are.

    With `expected` also those that a supervisor makes before it starts a container: a dry run.
    """
    run = folder.path
    closed = [run / name for name in (*_RENDERED, _SEAL, *_VERDICTS_PLACE)]
    closed += [folder.sources, folder.prediction, folder.supervisor, folder.termination]
    closed += [folder.manifest, folder.project_diff, folder.bundle, folder.queue, folder.advice]
    closed += sorted(run.glob("images*.sha256"))
    closed += [*_host_files(folder), *_host_folders(folder, earlier=earlier), folder.lock_lease]
    known = (stat.S_IFREG, stat.S_IFDIR)
    there = {place for place in closed if _kind(place) in known}
    pinned = [place for place in (folder.logs, folder.engine) if _kind(place) == stat.S_IFDIR]
    if expected:
        there |= {*_host_files(folder), *_host_folders(folder, earlier=earlier)}
        there |= {folder.supervisor, folder.manifest, *(run / name for name in _VERDICTS_PLACE)}
    return [
        *(_bind(place, readonly=False) for place in pinned),
        *(_bind(place) for place in sorted(there)),
    ]


def fixed_above(run: Path, mounts: Iterable[PlannedMount]) -> list[PlannedMount]:
    """Where a writable mount holds the run folder: what lies between, so that it can't be renamed
    away with all that is mounted in it. The folders of the runs beside it are read-only.
    """
    runs = (run.parent, run.parent.parent)
    found: dict[Path, PlannedMount] = {}
    for mount in mounts:
        top = Path(mount.target)
        if mount.readonly or mount.source != mount.target or top not in run.parents:
            continue
        for between in run.parents:
            if between == top:
                break
            found[between] = _bind(between, readonly=between in runs)
    return list(found.values())


def over(mounts: Sequence[PlannedMount], more: Iterable[PlannedMount]) -> list[PlannedMount]:
    """`mounts` with `more` on top, each target once; parents before what lies in them."""
    found = {mount.target: mount for mount in (*mounts, *more)}
    return [found[target] for target in sorted(found)]


def _host_files(folder: RunFolder) -> list[Path]:
    """What the host appends to, or writes in place, while the container runs."""
    appended = [folder.events, folder.memory, folder.container_log, folder.supervisor_log]
    return [folder.lock, folder.container, folder.container_id, *appended]


def _host_folders(folder: RunFolder, *, earlier: bool) -> list[Path]:
    return [folder.attempts, *([folder.earlier] if earlier else [])]


def _bind(place: Path, *, readonly: bool = True) -> PlannedMount:
    return PlannedMount(source=str(place), target=str(place), readonly=readonly)


def _kind(place: Path) -> int | None:
    try:
        return stat.S_IFMT(place.lstat().st_mode)
    except FileNotFoundError:
        return None
