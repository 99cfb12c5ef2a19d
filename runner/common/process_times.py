"""What names a process for good: its pid with its start time, in one boot and one pid namespace.

Standard library only.
"""

from __future__ import annotations

import os
import time
from pathlib import Path


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
