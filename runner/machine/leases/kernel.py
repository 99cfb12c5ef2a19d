"""What the kernel says of processes and locks: nothing here was written by the process itself.

Standard library and runner.common.processes only. In a machine that hides the processes of others
(hidepid), what can't be seen is None, and who asks falls back on the lock.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from runner.common.process_times import start_ticks
from runner.common.processes import real_uid, uid_of

LARGEST_PID = 2**22


def is_process(pid: int, ticks: int, uid: int) -> bool | None:
    """Whether this process of this user lives; None: something does, and is hidden from here."""
    owner = real_uid(pid)
    if owner is None:
        return None if _is_hidden(pid) else False
    return owner == uid and start_ticks(pid) == ticks


def lock_holders(about: os.stat_result) -> list[int]:
    """pids of those who took the flock of a file, as seen from here.

    Empty where nobody did, or none can be told: another pid namespace, some filesystems (btrfs).
    One that took it and died is listed as long as a child has the lock from it.
    """
    name = _lock_name(about)
    try:
        lines = Path("/proc/locks").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 00:1a:5678 0 EOF
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == name and words[4].isdigit():
            found.append(int(words[4]))
    return found


def has_locked(pid: int, about: os.stat_result) -> bool:
    """Whether this process holds the flock of a file now, by its own descriptors.

    Answers only for processes that this user may look into: his own. A pid from lock_holders can
    be another process by now.
    """
    name = _lock_name(about)
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                for line in Path(entry.path).read_text(errors="replace").splitlines():
                    words = line.split()  # lock: 1: FLOCK ADVISORY WRITE 4711 00:1a:5678 0 EOF
                    if words[:1] == ["lock:"] and words[2:3] == ["FLOCK"] and name in words:
                        return True
    return False


class Inner:
    """Processes of pid namespaces below this one, by what they are inside. Looked up once."""

    def __init__(self) -> None:
        self._pids: dict[tuple[int, int, int], int] | None = None

    def host_pid(self, pid: int, ticks: int, uid: int) -> int | None:
        """The pid here of the process that has `pid` inside, started then, of this user."""
        if self._pids is None:
            self._pids = dict(_inner_pids())
        return self._pids.get((pid, ticks, uid))


def _inner_pids() -> list[tuple[tuple[int, int, int], int]]:
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                status = Path(f"/proc/{entry.name}/status").read_text(errors="replace")
            except OSError:
                continue
            pids = next((x.split()[1:] for x in status.splitlines() if x.startswith("NSpid:")), [])
            uid, ticks = uid_of(status), None
            if len(pids) > 1 and uid is not None:
                ticks = start_ticks(int(entry.name))
            if ticks is not None and uid is not None:
                found.append(((int(pids[-1]), ticks, uid), int(entry.name)))
    return found


def _is_hidden(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _lock_name(about: os.stat_result) -> str:
    return f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
