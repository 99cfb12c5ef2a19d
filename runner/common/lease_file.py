"""A lock where flock can't be believed: a file made by O_EXCL, kept alive by a heartbeat.

Imports the standard library and runner.common.process_times. Used by runner.common.locks alone.

A lease is a folder with the file `holder` in it: who has it, and when he last said so. It counts
while its holder lives: on this machine, in this pid namespace, by his process; else while his last
heartbeat is younger than STALE_SECONDS. Of a dead holder it is taken over by whoever makes the file
`taking-TOKEN-N` (O_EXCL, TOKEN is the dead holder's), which then is renamed to `holder`: so of two
takers one wins. One who is himself taken for dead (a machine that slept, a disk that hung) finds
another's name at his next heartbeat, and is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runner.common.process_times import boot_id, pid_namespace, start_ticks

HOLDER = "holder"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""Twelve heartbeats, and twice the longest time for which NFS keeps attributes (acregmax, 60 s)."""
_RECORD_BYTES = 1024
"""Of a holder's record, filled up with spaces, so that a heartbeat never makes the file longer."""
_TRIES = 20
_MOST_TAKERS = 100
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True)
class Holder:
    """Who has a lease, as its file says; of a damaged file only its key and age count."""

    key: str
    """His token; of a file without one (he died while he wrote it) its inode."""
    host: str = ""
    boot: str | None = None
    pid_namespace: str | None = None
    pid: int = 0
    start_ticks: int = -1
    beat_boot_seconds: float | None = None
    """CLOCK_BOOTTIME of his machine at his last heartbeat."""
    modified_unix_seconds: float = 0.0
    """The file's, by the clock of the disk."""

    @property
    def text(self) -> str:
        return f"pid {self.pid} on {self.host}" if self.host else "somebody"


class Lease:
    """A lease of this process. Its heartbeat is a daemon thread, which ends with the process."""

    def __init__(self, parent: int, name: str, folder: int, descriptor: int, key: str) -> None:
        """Of the descriptors `folder` and `descriptor` are its own from now on, `parent` a copy."""
        self._parent, self._name = os.dup(parent), name
        self._folder, self._descriptor, self._key = folder, descriptor, key
        self._pid = os.getpid()
        self._changing = threading.Lock()
        self._over = threading.Event()
        self.on_lost: Callable[[str], None] | None = None
        """Called once, in another thread, with who has it now: this process has it no more."""
        threading.Thread(target=self._keep_alive, name="runner-lease", daemon=True).start()

    def release(self) -> None:
        """Give it up, if it is still this process's."""
        if self._over.is_set() or os.getpid() != self._pid:
            return
        with self._changing:
            self._over.set()
            if self._lost_to() is None:
                with contextlib.suppress(OSError):
                    os.unlink(HOLDER, dir_fd=self._folder)
            with contextlib.suppress(OSError):  # the next one is in it already
                os.rmdir(self._name, dir_fd=self._parent)
            for descriptor in (self._descriptor, self._folder, self._parent):
                os.close(descriptor)

    def beat(self) -> str | None:
        """Say that this process lives; who has the lease now, where it is another's, else None.

        Raises OSError where the disk does not answer.
        """
        lost_to = self._lost_to()
        if lost_to is None:
            os.pwrite(self._descriptor, _record(self._key), 0)
            os.fsync(self._descriptor)
        return lost_to

    def _lost_to(self) -> str | None:
        found = read(self._folder, HOLDER)
        if found is None:
            return "nobody: its file was removed"
        return None if found.key == self._key else found.text

    def _keep_alive(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with self._changing:
                if self._over.is_set():
                    return
                try:
                    lost_to = self.beat()
                except OSError:
                    continue  # a disk that does not answer may do so the next time
            if lost_to is not None:
                if self.on_lost is not None:
                    self.on_lost(lost_to)
                return


def try_take(parent: int, name: str) -> Lease | None:
    """Take the lease `name` in the folder that is open as `parent`; None where another has it.

    Raises OSError.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        try:
            folder = os.open(name, _OPEN_FOLDER, dir_fd=parent)
        except FileNotFoundError:  # removed by one who gave it up
            continue
        lease = None
        try:
            key = secrets.token_hex(16)
            descriptor = _take_in(folder, key)
            if descriptor is None:
                return None
            lease = Lease(parent, name, folder, descriptor, key)
            return lease
        except FileNotFoundError:  # the same
            continue
        finally:
            if lease is None:
                os.close(folder)
    return None


def is_taken(parent: int, name: str) -> bool:
    """Whether the lease `name` is held by one who lives. Raises no OSError: then it is not."""
    try:
        folder = os.open(name, _OPEN_FOLDER, dir_fd=parent)
    except OSError:
        return False
    try:
        found = read(folder, HOLDER)
        return found is not None and is_living(found, folder)
    finally:
        os.close(folder)


def is_living(holder: Holder, folder: int) -> bool:
    """Whether a holder lives, as far as can be told from here.

    By his process where that can be looked at; else by the age of his last heartbeat: by the clock
    of this machine's kernel where it is his too, else by the disk's own clock.
    """
    if holder.boot is not None and holder.boot == boot_id():
        if holder.pid_namespace is not None and holder.pid_namespace == pid_namespace():
            return start_ticks(holder.pid) == holder.start_ticks
        if holder.beat_boot_seconds is not None:
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - holder.beat_boot_seconds
            return -1.0 <= age <= STALE_SECONDS
    return disk_seconds(folder) - holder.modified_unix_seconds <= STALE_SECONDS


def disk_seconds(folder: int) -> float:
    """Unix time by the clock of the disk, which is another machine's; ours where none can write."""
    name = f"clock-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(name, _NEW, 0o644, dir_fd=folder)
    except OSError:
        return time.time()
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)


def read(folder: int, name: str) -> Holder | None:
    """The holder that a file names; None where there is no such file.

    Raises OSError where the disk does not answer, or another thing has this name.
    """
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(22, f"{name} of a lease is no regular file")
        content = os.read(descriptor, _RECORD_BYTES)
    finally:
        os.close(descriptor)
    return _parse(content, f"inode-{about.st_ino}", about.st_mtime)


def _take_in(folder: int, key: str) -> int | None:
    """The descriptor of `holder`, made or taken over; None where another has it."""
    try:
        return _make(folder, HOLDER, key)
    except FileExistsError:
        pass
    found = read(folder, HOLDER)
    if found is None:
        raise FileNotFoundError  # given up at this moment: once more
    return None if is_living(found, folder) else _take_over(folder, found, key)


def _take_over(folder: int, dead: Holder, key: str) -> int | None:
    """The descriptor of `holder`, taken from a dead one; None where another does that."""
    began = time.monotonic()
    for number in range(1, _MOST_TAKERS):
        taking = f"taking-{dead.key}-{number}"
        try:
            descriptor = _make(folder, taking, key)
            break
        except FileExistsError:
            other = read(folder, taking)
            if other is None or is_living(other, folder):
                return None
    else:
        return None
    try:
        now = read(folder, HOLDER)
        # one who was held up for so long may be taken for dead by now
        in_time = time.monotonic() - began < STALE_SECONDS / 2
        if now is not None and now.key == dead.key and in_time:
            os.rename(taking, HOLDER, src_dir_fd=folder, dst_dir_fd=folder)
            for earlier in range(1, number):  # of takers who died on the way
                with contextlib.suppress(OSError):
                    os.unlink(f"taking-{dead.key}-{earlier}", dir_fd=folder)
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    with contextlib.suppress(OSError):
        os.unlink(taking, dir_fd=folder)
    return None


def _make(folder: int, name: str, key: str) -> int:
    """Make a file that names this process. Raises FileExistsError, OSError."""
    descriptor = os.open(name, _NEW, 0o644, dir_fd=folder)
    try:
        if os.write(descriptor, _record(key)) < _RECORD_BYTES:
            raise OSError(28, os.strerror(28))
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
    return descriptor


def _record(key: str) -> bytes:
    record = {
        "schema_version": 1,
        "token": key,
        "host": socket.gethostname()[:255],
        "boot_id": boot_id(),
        "pid_namespace": pid_namespace(),
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "beat_boot_seconds": round(time.clock_gettime(time.CLOCK_BOOTTIME), 3),
    }
    return json.dumps(record).encode().ljust(_RECORD_BYTES - 1) + b"\n"


def _parse(content: bytes, instead: str, modified: float) -> Holder:
    damaged = Holder(instead, modified_unix_seconds=modified)
    try:
        record: Any = json.loads(content)
        token = record["token"]
        if not (isinstance(token, str) and token.isalnum() and len(token) <= 64):
            return damaged
        beat = record["beat_boot_seconds"]
        return Holder(
            key=token,
            host=str(record["host"])[:255],
            boot=_word(record["boot_id"]),
            pid_namespace=_word(record["pid_namespace"]),
            pid=int(record["pid"]),
            start_ticks=int(record["start_ticks"]),
            beat_boot_seconds=float(beat) if isinstance(beat, int | float) else None,
            modified_unix_seconds=modified,
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return damaged


def _word(value: object) -> str | None:
    return value if isinstance(value, str) else None
