"""Read a few small files of /proc, for the guard's samples; Linux only.

May import the stdlib and psutil. Listing all of /proc costs as much as the machine has processes;
what is here costs as much as the run has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import NamedTuple

import psutil

_HIGH_WATER = re.compile(rb"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_MUCH = 2048  # bytes; the kernel gives a page at a time, so there may be more behind so many
_ASKS = 3  # how often a walk is begun again because somebody on the way ended


class Stat(NamedTuple):
    """What /proc/PID/stat says of a process."""

    live: bool
    """Whether any thread still runs: the first can end while others hang (in a driver, say)."""
    parent: int
    start_ticks: int


def read_stat(pid: int) -> Stat | None:
    """None where the process is gone."""
    found = stat_fields(pid, 20)
    if found is None:
        return None
    fields = found[1]
    live = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    return Stat(live, int(fields[1]), int(fields[19]))


def stat_fields(pid: int, most: int = -1) -> tuple[bytes, list[bytes]] | None:
    """A process's name and the fields behind it in /proc/PID/stat, from its state on.

    None where the process is gone. The kernel cuts a name after 15 letters. `most`: of these fields
    are split, the rest is one.
    """
    try:
        head, _, rest = _read(f"/proc/{pid}/stat").rpartition(b")")  # the name may hold anything
    except OSError:
        return None
    return head.partition(b"(")[2], rest.split(None, most)


def high_water_bytes(pid: int) -> int | None:
    """The most resident memory that a process has had since it was executed (VmHWM), in bytes.

    The kernel's own mark, so no instant is missed; it falls only with an exec. None where the
    process is gone, or the kernel keeps none.
    """
    try:
        text = _read(f"/proc/{pid}/status")
    except OSError:
        return None
    found = _HIGH_WATER.search(text)
    return int(found[1]) * 1024 if found else None


def tells_children() -> bool:
    """Whether this kernel lists a thread's children (CONFIG_PROC_CHILDREN)."""
    pid = os.getpid()
    return os.access(f"/proc/{pid}/task/{pid}/children", os.R_OK)


def descendants(root: int) -> set[int]:
    """All below a process, ended ones too. Can lack some where others end meanwhile, or are born.

    Only where `tells_children`.
    """
    found: set[int] = set()
    ask = [root]
    while ask:
        new = _children(ask.pop()) - found
        found |= new
        ask += new
    return found


def descends(pid: int, root: int) -> int | None:
    """The start time, in ticks, of a process that is below `root`; None where it isn't.

    Found by its parents, so none is missed for being new.
    """
    for _ in range(_ASKS):
        own = stat = read_stat(pid)
        while stat is not None and own is not None:
            if stat.parent == root:
                return own.start_ticks
            if stat.parent == 0:
                return None
            above = read_stat(stat.parent)
            if above is not None and above.start_ticks > stat.start_ticks:
                above = None  # the parent ended, and another has its pid
            stat = above
        if own is None:
            return None
    return None


class ProcessRegistry:
    """Processes that were entered once: those of them that live, for a read of /proc each."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, psutil.Process]] = {}

    def __contains__(self, pid: int) -> bool:
        return pid in self._known

    def get(self, pid: int) -> psutil.Process | None:
        """The process that was entered under this pid, while it lives; a zombie doesn't."""
        known = self._known.get(pid)
        if known is None:
            return None
        stat = read_stat(pid)
        if stat is not None and stat.live and stat.start_ticks == known[0]:
            return known[1]
        del self._known[pid]
        return None

    def enter(self, pid: int, start_ticks: int | None = None) -> psutil.Process | None:
        """Enter who lives under this pid now; None where nobody does, or not since that time."""
        before = read_stat(pid)
        if before is None or not before.live or start_ticks not in (None, before.start_ticks):
            return None
        try:
            process = psutil.Process(pid)
        except psutil.Error:
            return None
        after = read_stat(pid)
        if after is None or after.start_ticks != before.start_ticks:
            return None
        self._known[pid] = (before.start_ticks, process)
        return process

    def get_or_enter(self, pid: int) -> psutil.Process | None:
        """Who lives under this pid now, entered where that is somebody new."""
        return self.get(pid) or self.enter(pid)

    def keep(self, pids: Collection[int]) -> None:
        """Forget all others."""
        for pid in self._known.keys() - set(pids):
            del self._known[pid]

    def living(self) -> list[psutil.Process]:
        """All that live; the others are forgotten."""
        return [process for pid in list(self._known) if (process := self.get(pid)) is not None]


def _children(pid: int) -> set[int]:
    """A process's children; each hangs on the thread that started it."""
    found: set[int] = set()
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - a third of the time
    except OSError:
        return found
    for thread in threads:
        try:
            text = _read(f"/proc/{pid}/task/{thread}/children")
        except OSError:
            continue  # the thread has ended
        found.update(map(int, text.split()))
    return found


def _read(path: str) -> bytes:
    """A whole file of /proc, without what makes Path.read_bytes twice as slow."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = piece = os.read(descriptor, 65536)
        while len(piece) > _MUCH:
            piece = os.read(descriptor, 65536)
            text += piece
        return text
    finally:
        os.close(descriptor)
