"""Folders made once and reused: named by what they hold, whole or not there.

Imports the standard library, runner.common.durable, locks, staged_folder and errors.

A folder is made beside its place under a lock, flushed, and renamed; its manifest, written last,
tells the files and their sizes. The lock ends with the process, so neither a kill nor two processes
at once leave anything that has to be put right by hand.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from runner.common import durable, locks, staged_folder
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
    with locks.locked(lock_of(folder)):
        if is_whole(folder):  # another process made it meanwhile
            return False
        staged_folder.sweep(folder.parent)  # of other folders too
        with staged_folder.staged(folder, existing="replace") as staging:
            make(staging)
            seal(staging)
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
