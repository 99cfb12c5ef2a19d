"""Delete runs and checkpoints: hide each by one rename, then delete it.

Imports the standard library, runner.common and runner.runs. The caller holds the run's lock, which
a supervisor needs to start: so nobody resumes what is being removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from runner.common.errors import RefusedError, RunnerError, UsageError
from runner.common.shared_folder import SharedFolder
from runner.runs import tmpdir as temporary
from runner.runs.find import is_run_name
from runner.runs.folder import RunFolder
from runner.runs.orphans import living_processes
from runner.runs.state import LIVING, state_of

HIDDEN = ".removed-"
"""What begins so is deleted by the next `rm` or `prune`, where one was killed in its midst."""


@contextlib.contextmanager
def locked_for_removal(folder: RunFolder) -> Iterator[None]:
    """Nobody starts this run meanwhile.

    Raises:
        UsageError: the folder is no run's own: a link, or a copy under another name.
        RefusedError: it runs, waits for a GPU, or is another user's.
    """
    if folder.path.is_symlink() or not is_run_name(folder.path.name):
        raise UsageError(
            f"{folder.path} is not named as runner names its runs, so it is left alone",
            "delete a link or a copy by hand",
        )
    state = state_of(folder)
    if state in LIVING:
        raise RefusedError(
            f"{folder.name} is {state}; it is left alone",
            f"runner stop {folder.name} ends it first",
        )
    living = living_processes(folder)
    if living:
        raise RefusedError(
            f"pids {living} of {folder.name} still live, without a supervisor; it is left alone",
            f"kill {' '.join(map(str, living))} ends them",
        )
    try:
        lock = folder.try_lock()
    except FileNotFoundError:
        raise RunnerError(f"{folder.name}: its folder is gone already") from None
    except PermissionError:
        raise RefusedError(f"{folder.name} belongs to another user") from None
    except OSError as error:
        raise RefusedError(
            f"{folder.lock} of {folder.name} can't be locked: {error.strerror}",
            "it is no file that runner made; delete the run by hand",
        ) from None
    if lock is None:
        raise RefusedError(f"{folder.name} is being started; it is left alone")
    with lock:
        yield


def remove_run(folder: RunFolder) -> None:
    """Remove the folder whole, and its temporary files elsewhere; only within `held`.

    Raises RunnerError where something of it stays, out of sight.
    """
    with contextlib.suppress(OSError):  # the run is what its user wants gone
        temporary.clear(folder.path)
    _remove(SharedFolder(folder.path.parent), folder.path)


def remove_checkpoints(folder: RunFolder, names: tuple[str, ...]) -> None:
    """Remove those checkpoints; only within `held`.

    Raises RunnerError as remove_run does, and where checkpoints/ is a link.
    """
    if folder.is_there(folder.checkpoints) and not folder.is_folder(folder.checkpoints):
        raise RunnerError(
            f"{folder.checkpoints} is a link; nothing is removed through it",
            "remove them by hand where they are",
        )
    for name in names:
        path = folder.checkpoints / name
        if folder.is_folder(path):
            _remove(folder, path)


def sweep(root: Path) -> None:
    """Delete what a removal that was killed has left."""
    for job in (SharedFolder(path) for path in root.glob("*/")):
        _sweep(job, job.path)
        for name in job.names(job.path):
            _sweep(job, job.path / name / "checkpoints")


def disk_bytes(path: Path) -> int:
    """What a folder takes on the disk, in bytes; files with several links count once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for parent, _, names in os.walk(path):
        for name in [".", *names]:
            with contextlib.suppress(OSError):  # removed meanwhile
                told = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - thousands of files
                if (told.st_dev, told.st_ino) not in seen:
                    seen.add((told.st_dev, told.st_ino))
                    total += told.st_blocks * 512
    return total


def _sweep(within: SharedFolder, place: Path) -> None:
    for name in within.names(place):
        if name.startswith(HIDDEN):
            within.remove(place / name, as_far_as_possible=True)


def _remove(within: SharedFolder, path: Path) -> None:
    hidden = path.with_name(f"{HIDDEN}{path.name}")
    within.remove(hidden, as_far_as_possible=True)
    try:
        within.move(path, hidden)
    except OSError as error:
        raise RunnerError(f"{path} can't be removed: {error.strerror}") from None
    within.remove(hidden, as_far_as_possible=True)
    if within.is_there(hidden):
        raise RunnerError(
            f"{path.name} is removed, but some of its files can't be deleted: they are in {hidden}",
            "files of another user, perhaps; runner prune tries again",
        )
