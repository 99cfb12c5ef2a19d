"""Folders made once and reused: named by what they hold, whole or not there.

Imports the standard library, runner.common.durable and runner.common.errors.

A folder is made beside its place under a lock, flushed, and renamed; its manifest, written last,
tells the files and their sizes. The lock is the kernel's and ends with the process, so neither a
kill nor two processes at once leave anything that has to be put right by hand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.common import durable
from runner.common.errors import RefusedError

MANIFEST = "manifest.json"
_SCHEMA_VERSION = 1
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_BYTES = 64 << 20  # with less free, a library that could not write found no room
_FULL_WORDS = ("no space left", "file too large", "max_temp_directory_size")


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """See to it that `folder` is there and whole; whether `make` had to fill it.

    `make` gets an empty folder and is called by one process at a time. What it raises is raised,
    and nothing is left behind. A damaged folder is made anew.
    """
    if is_whole(folder):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if is_whole(folder):  # another process made it meanwhile
            return False
        staging = _staging(folder)
        shutil.rmtree(staging, ignore_errors=True)  # of a killed process: the lock is ours
        _sweep(folder.parent)
        try:
            staging.mkdir()
            make(staging)
            seal(staging)
            if folder.exists():
                shutil.rmtree(folder)
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        durable.fsync_folder(folder.parent)
    return True


def is_whole(folder: Path) -> bool:
    """Whether the manifest is there and each file in it has its size."""
    manifest = durable.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema_version") != _SCHEMA_VERSION:
        return False
    try:
        return all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except OSError:
        return False


def lock_of(folder: Path) -> Path:
    """The file that is locked while `folder` is made."""
    return folder.with_name(f".{folder.name}.lock")


def seal(folder: Path) -> None:
    """Flush all files of `folder` and write its manifest."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        sizes[path.name] = path.stat().st_size
    durable.write_json(folder / MANIFEST, {"schema_version": _SCHEMA_VERSION, "files": sizes})


def _staging(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.staging")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with lock_of(folder).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(parent: Path) -> None:
    """Remove what killed processes left of other folders."""
    for staging in parent.glob(".*.staging"):
        name = staging.name[1 : -len(".staging")]
        with contextlib.suppress(OSError), lock_of(parent / name).open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(staging, ignore_errors=True)


def tells_full(error: Exception, folder: Path) -> bool:
    """Whether a library's own error, while it wrote to `folder`, means that there is no room."""
    text = str(error).lower()
    full = shutil.disk_usage(folder).free < _FULL_BYTES
    return full or any(words in text for words in _FULL_WORDS)


def no_room(root: Path, error: OSError) -> RefusedError:
    """The refusal for an error while a folder in `root` was made."""
    if error.errno in _FULL_DISK:
        return RefusedError(
            f"no room to prepare rows in {root}: {error.strerror}",
            "about three times the size of the rows is needed for a while; RUNNER_CACHE names "
            "another folder",
        )
    return RefusedError(
        f"rows can't be prepared in {root}: {error.strerror or error}",
        "RUNNER_CACHE names another folder",
    )
