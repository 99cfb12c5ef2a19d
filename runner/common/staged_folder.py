"""A folder that is written aside, flushed and renamed to its place, the one place: whole or absent.

    with staged(final, existing="refuse") as folder: ...    # filled in the block
    replace(written, final, aside)                           # for who writes and flushes by himself

What is written lies at .NAME.TOKEN.staging, locked by its maker; what a maker who was killed has
left there is locked by nobody, and goes with the next one's `staged` or `sweep`. A kill leaves at
`final` what was there before or all of the new, or, between the two renames of a replacement,
nothing: then the older one lies at `aside`, and is put back. Below a run folder that a container
writes, the host uses runner.common.shared_folder instead, which follows no link. Imports the
standard library and runner.common.durable, locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from runner.common import locks
from runner.common.durable import fsync_folder


class Taken(FileExistsError):
    """Something is at the place that a new folder was to take."""


Existing = Literal["refuse", "keep", "replace"]
"""What becomes of something at `final`: an error, it stays and the new one goes, or it goes."""
REPLACED = ".replaced"
"""Ends the name that a finished folder has while a newer one takes its place."""
_STAGING = ".staging"
_TOKEN = re.compile(r"\.[0-9a-f]{16}\.staging")
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


@contextlib.contextmanager
def staged(
    final: Path, *, existing: Existing, private: bool = False, many: bool = False
) -> Iterator[Path]:
    """An empty folder to be filled; it takes its place at `final` when the block ends well.

    Where it does not, nothing is left. The folders above `final` are made where they are not there.

    Args:
        private: nobody else may look into it while it is filled; the block sets its mode.
        many: of thousands of files, which one sync of all disks flushes sooner than one each.

    Raises OSError; Taken where something is at `final` that is not to be replaced.
    """
    with _made_above(final):
        sweep(final.parent, final.name)
        if existing == "replace":
            put_back(final)
        staging, held = _new(final, 0o700 if private else 0o777)
        try:
            yield staging
            if many:
                os.sync()
            else:
                flush(staging)
            _take_place(staging, final, existing)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            held.release()


def replaced_of(final: Path) -> Path:
    """Where what stood at `final` lies for the instant in which another takes its place."""
    return final.with_name(f".{final.name}{REPLACED}")


def replace(written: Path, final: Path, aside: Path) -> None:
    """Rename a finished folder to its place; what is there is moved to `aside` first, then deleted.

    A kill between the two renames leaves the older one at `aside`. Raises OSError.
    """
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)  # left by a kill between these lines
        final.rename(aside)
        written.rename(final)
        shutil.rmtree(aside)
    else:
        written.rename(final)
    fsync_folder(final.parent)


def put_back(final: Path) -> None:
    """Undo a replacement that was killed half way: the older one is at `final` again.

    One that was killed after it leaves the older one, which is deleted. Raises OSError.
    """
    aside = replaced_of(final)
    if aside.is_dir() and not aside.is_symlink():
        if os.path.lexists(final):
            shutil.rmtree(aside)
        else:
            aside.rename(final)


def place_new(written: Path, final: Path) -> None:
    """Rename a finished folder to a place where nothing is, not even an empty folder.

    Raises Taken, OSError.
    """
    _rename_alone(written, final)
    fsync_folder(final.parent)


def flush(folder: Path) -> None:
    """Have the disk hold all of a folder: its files, and the names of each. Raises OSError."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent) / name for name in names):
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        fsync_folder(Path(parent))


def sweep(parent: Path, name: str | None = None) -> None:
    """Delete what makers who were killed have left in a folder; `name`: of this one alone."""
    for left in parent.glob(f".{glob.escape(name)}.*{_STAGING}" if name else f".*{_STAGING}"):
        if not _TOKEN.fullmatch(left.name[-len(".0123456789abcdef.staging") :]):
            continue
        with contextlib.suppress(OSError):
            held = locks.try_lock_folder(left)
            if held is not None:
                with held:
                    if _is_at(left, held) and os.fstat(held.descriptor).st_uid == os.geteuid():
                        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _made_above(final: Path) -> Iterator[None]:
    """The folders above it, made where they are not there; gone again where the block fails."""
    made = [each for each in final.parents if not each.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for each in made:  # the innermost first
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


def _take_place(staging: Path, final: Path, existing: Existing) -> None:
    if existing == "replace":
        replace(staging, final, replaced_of(final))
        return
    try:
        place_new(staging, final)
    except Taken:
        if existing == "refuse":
            raise


def _new(final: Path, mode: int) -> tuple[Path, locks.Held]:
    """A new folder to write into, and the lock that keeps it. Raises OSError.

    Between its making and its lock another's sweep may take it for a dead one's; then it is made
    again.
    """
    while True:
        staging = final.with_name(f".{final.name}.{secrets.token_hex(8)}{_STAGING}")
        staging.mkdir(mode)
        with contextlib.suppress(FileNotFoundError):
            held = locks.try_lock_folder(staging)
            if held is not None and _is_at(staging, held):
                return staging, held
            if held is not None:
                held.release()


def _is_at(path: Path, held: locks.Held) -> bool:
    """Whether the folder that is locked is still the one that lies there."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(held.descriptor))
    except FileNotFoundError:
        return False


def _renameat2() -> Callable[..., int] | None:
    """The C library's, which glibc has since 2.28."""
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _rename_alone(one: Path, other: Path) -> None:
    """renameat2 with RENAME_NOREPLACE; a look and a rename where the file system lacks it."""
    call = _renameat2()
    if call is not None:
        names = os.fsencode(one), os.fsencode(other)
        if not call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
            return
        code = ctypes.get_errno()
        if code == errno.EEXIST:
            raise Taken(code, os.strerror(code), str(other))
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(other))
    if os.path.lexists(other):
        raise Taken(errno.EEXIST, os.strerror(errno.EEXIST), str(other))
    one.rename(other)
