"""Runs and checkpoints removed: out of sight in one step, then deleted.

Imports the standard library and runner.folder, state, survivors, temporary, errors. Who removes a
run holds its lock, which a supervisor needs to start: so nobody goes on with what is being removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from runner import durable, temporary
from runner.errors import RefusedError, RunnerError, UsageError
from runner.folder import RunFolder, is_run_name
from runner.state import LIVING, state_of
from runner.survivors import living_processes

HIDDEN = ".removed-"
"""What begins so is deleted by the next `rm` or `prune`, where one was killed in its midst."""


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
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
    # neither waited for nor followed, whatever somebody put in its place
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(folder.lock, flags, 0o644)
    except FileNotFoundError:
        raise RunnerError(f"{folder.name}: its folder is gone already") from None
    except PermissionError:
        raise RefusedError(f"{folder.name} belongs to another user") from None
    except OSError as error:
        raise RefusedError(
            f"{folder.lock} of {folder.name} can't be locked: {error.strerror}",
            "it is no file that runner made; delete the run by hand",
        ) from None
    with os.fdopen(descriptor, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(f"{folder.name} is being started; it is left alone") from None
        yield


def remove_run(folder: RunFolder) -> None:
    """Remove the folder whole, and its temporary files elsewhere; only within `held`.

    Raises RunnerError where something of it stays, out of sight.
    """
    with contextlib.suppress(OSError):  # the run is what its user wants gone
        temporary.clear(folder.path)
    _remove(folder.path)


def remove_checkpoints(folder: RunFolder, names: tuple[str, ...]) -> None:
    """Remove those checkpoints; only within `held`. Raises RunnerError as remove_run does."""
    for name in names:
        path = folder.checkpoints / name
        if path.is_dir():
            _remove(path)


def sweep(root: Path) -> None:
    """Delete what a removal that was killed has left."""
    for pattern in ("*/", "*/*/checkpoints/"):
        for path in root.glob(f"{pattern}{HIDDEN}*"):
            shutil.rmtree(path, ignore_errors=True)


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


def _remove(path: Path) -> None:
    hidden = path.with_name(f"{HIDDEN}{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        path.rename(hidden)
        durable.fsync_folder(path.parent)
    except OSError as error:
        raise RunnerError(f"{path} can't be removed: {error.strerror}") from None
    shutil.rmtree(hidden, ignore_errors=True)
    if hidden.exists():
        raise RunnerError(
            f"{path.name} is removed, but some of its files can't be deleted: they are in {hidden}",
            "files of another user, perhaps; runner prune tries again",
        )
