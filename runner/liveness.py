"""Is the process that wrote a record still alive? Standard library and runner.durable only.

A pid alone says nothing, since pids are reused; with its start time it names a process for good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner import durable
from runner.folder import RunFolder


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat).

    None where the process is gone, or is a zombie that only waits to be reaped.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def is_living(record: dict[str, Any]) -> bool:
    """Whether the process of a record with `pid` and `start_ticks` lives."""
    ticks = start_ticks(int(record.get("pid", 0)))
    return ticks is not None and ticks == record.get("start_ticks")


def living_engines(folder: RunFolder) -> list[int]:
    """pids of the training processes of this run that live."""
    records = (durable.read_json(path) or {} for path in folder.engine.glob("rank-*.json"))
    return sorted(int(record["pid"]) for record in records if is_living(record))
