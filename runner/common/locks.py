"""Locks between processes, the one place: one holder at a time, free again when he dies.

    with locks.locked(path, waiting=say_so): ...        # one after the other
    held = locks.try_lock(path)                         # now, or None where another has it
    held = locks.try_lock_folder(folder)                # of a folder that may be renamed meanwhile
    locks.is_locked(path)                               # for who only looks

A lock is named by a file, which stays when the lock is given up and holds nothing. On a file system
of one machine it is the kernel's (flock), which drops it with its process, kill -9 included. On all
others (NFS, Lustre, GPFS, FUSE, CIFS, or a type that is not known) it is a lease beside that file
(runner.common.lease_file): an O_EXCL file with a heartbeat, which a kill leaves and the next one
takes over; at once where the dead one's process can be looked at, else after
lease_file.STALE_SECONDS. Imports the standard library and runner.common.durable, file_systems,
lease_file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from runner.common import durable, file_systems, lease_file

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 0.05
_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Open = Callable[[], int]
"""Opens what names a lock, and gives the descriptor away. Raises OSError."""


class Held:
    """A lock that this process has, until `release` or the end of a `with` block."""

    def __init__(self, descriptor: int, lease: lease_file.Lease | None) -> None:
        self.descriptor = descriptor
        """Of the file or folder that names the lock; open until it is released."""
        self._lease = lease
        self._released = False

    def release(self) -> None:
        """Give it up; a second time nothing happens."""
        if self._released:
            return
        self._released = True
        if self._lease is not None:
            self._lease.release()
        os.close(self.descriptor)

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def try_lock(
    path: Path,
    *,
    opening: Open | None = None,
    patience_seconds: float = 0.0,
    on_lost: Callable[[str], None] | None = None,
) -> Held | None:
    """Take the lock of `path`; None where another has it.

    Args:
        opening: opens `path` by other means than making it where it is not there yet.
        patience_seconds: for how long it is tried; one who only looks has it for an instant.
        on_lost: called in another thread with who has it now, where this process was taken for
            dead. A lock of the kernel's is never lost.

    Raises OSError where it can't be opened or locked.
    """
    end = time.monotonic() + patience_seconds
    while True:
        descriptor = os.open(path, _FILE, 0o666) if opening is None else opening()
        held = _take(descriptor, path.parent, _lease_name(path), on_lost)
        if held is not None or time.monotonic() >= end:
            return held
        time.sleep(_RETRY_SECONDS)


def try_lock_folder(folder: Path) -> Held | None:
    """Take the lock of a folder itself; None where another has it.

    It is kept when the folder is renamed; whether the new name is locked too is not said. Raises
    OSError, also where a link stands there.
    """
    return _take(os.open(folder, _FOLDER), folder.parent, _lease_name(folder), None)


@contextlib.contextmanager
def locked(path: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Have the lock of `path` inside the block, however long others keep it.

    `waiting` is called once where another has it. Raises OSError.
    """
    held = try_lock(path)
    if held is None:
        if waiting is not None:
            waiting()
        held = _wait(path)
    with held:
        yield


def is_locked(path: Path) -> bool:
    """Whether somebody has the lock of `path`, as one who may only read sees it.

    No where there is no such file, or it is a link.
    """
    try:
        with durable.open_record(path) as stream:
            if file_systems.has_trusted_flock(stream.fileno()):
                return not try_flock(stream.fileno(), shared=True)
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return lease_file.is_taken(parent, _lease_name(path))
    except OSError:
        return False
    finally:
        os.close(parent)


def lease_folder(path: Path) -> Path:
    """Where the lease of `path` lies, on a file system whose flock can't be believed."""
    return path.with_name(_lease_name(path))


def try_flock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the kernel's lock of what is open, until it is closed; whether that was possible.

    For who has seen to it that the file system keeps it. Raises OSError where that has none.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take(
    descriptor: int, parent: Path, name: str, on_lost: Callable[[str], None] | None
) -> Held | None:
    """The lock of what is open, whose lease is `name` in `parent`. Closes it where it is not."""
    try:
        if file_systems.has_trusted_flock(descriptor):
            if try_flock(descriptor):
                return Held(descriptor, None)
        elif lease := _take_lease(parent, name):
            lease.on_lost = on_lost
            return Held(descriptor, lease)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _take_lease(parent: Path, name: str) -> lease_file.Lease | None:
    opened = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return lease_file.try_take(opened, name)
    finally:
        os.close(opened)


def _wait(path: Path) -> Held:
    """The lock, once it is free: from the kernel's own queue, or by asking again and again."""
    if not file_systems.has_trusted_flock(path):
        while (held := try_lock(path)) is None:
            time.sleep(_POLL_SECONDS)
        return held
    descriptor = os.open(path, _FILE, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return Held(descriptor, None)


def _lease_name(path: Path) -> str:
    return f"{path.name}.lease"
