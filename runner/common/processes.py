"""Say whether the process that wrote a record is still alive.

Standard library and runner.common.durable only. A pid alone says nothing, since pids are reused;
together with its start time it identifies a process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat).

    None where the process is gone, or is a zombie that only waits to be reaped.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # a process may give itself any bytes for a name
    return None if fields[0] == b"Z" else int(fields[19])


def boot_id() -> str | None:
    """Names the time since this machine was started: the pids of another have all gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def age_seconds(ticks: int) -> float:
    """How long ago a process with this start time started, whatever was done to the wall clock."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0.0, now - ticks / os.sysconf("SC_CLK_TCK"))


def pid_namespace() -> str | None:
    """Names the namespace in which this process's pids mean something; None where it can't be told.

    A container has one of its own.
    """
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def host_pid(record: dict[str, Any]) -> int | None:
    """The pid, as seen from here, of the process that wrote a record; None where it is gone.

    A process in a container writes the pid that it has inside. Its start time is the same on both
    sides, and the kernel lists its pids, outermost first, in /proc/PID/status (NSpid).
    """
    pid, ticks = record.get("pid"), record.get("start_ticks")
    if type(pid) is not int or type(ticks) is not int or not 0 < pid < 2**31:
        return None  # a damaged record names nobody
    if record.get("boot_id") not in (None, boot_id()):
        return None
    if start_ticks(pid) == ticks:
        return pid
    if record.get("pid_namespace") in (None, pid_namespace()):
        return None
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or start_ticks(int(entry.name)) != ticks:
            continue
        try:
            status = (entry / "status").read_text(errors="replace")
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("NSpid:") and line.split()[-1] == str(pid):
                return int(entry.name)
    return None


def real_uid(pid: int) -> int | None:
    """The user whose process it is; None where it is gone, or hidden from here."""
    try:
        return uid_of(Path(f"/proc/{pid}/status").read_text(errors="replace"))
    except OSError:
        return None


def uid_of(status: str) -> int | None:
    """The real user in the text of /proc/PID/status; None where it says none."""
    for line in status.splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    return None


def is_living(record: dict[str, Any]) -> bool:
    """Whether the process of a record with `pid` and `start_ticks` lives, in a container or not."""
    return host_pid(record) is not None
