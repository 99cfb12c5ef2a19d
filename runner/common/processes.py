"""Say whether the process that wrote a record is still alive.

Standard library and runner.common.process_times only. A pid alone says nothing, since pids are
reused; together with its start time it identifies a process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runner.common.process_times import boot_id, pid_namespace, start_ticks


def host_pid(record: Mapping[str, object]) -> int | None:
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


def is_living(record: Mapping[str, object]) -> bool:
    """Whether the process of a record with `pid` and `start_ticks` lives, in a container or not."""
    return host_pid(record) is not None
