"""The file systems that runs and caches are on.

Imports the standard library, units, the folders' own modules and the doctor's `check`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.units import GIB, format_bytes
from runner.machine.doctor.check import Check, Status
from runner.machine.doctor.hub import hub_cache
from runner.runs.find import default_root

DISK_WARNING_BYTES = 10 * GIB


@dataclass(frozen=True)
class Disk:
    """The file system that a folder is on, or will be on."""

    purpose: str
    path: Path
    there: bool
    """The folder exists."""
    blocked_by: Path | None
    """A file where a folder is needed."""
    writable: bool
    free_bytes: int | None
    total_bytes: int | None


def read_disks() -> tuple[Disk, ...]:
    """Of the runs, of runner's cache and of the hub's."""
    return (
        read_disk("runs", default_root()),
        read_disk("cache", cache_folder()),
        read_disk("hub cache", hub_cache()),
    )


def read_disk(purpose: str, path: Path) -> Disk:
    """Asked of the nearest folder that exists: the rest is made at first use."""
    path = path.expanduser().absolute()
    try:
        nearest = next(place for place in (path, *path.parents) if place.exists())
        blocked = nearest if not nearest.is_dir() else None
        usage = shutil.disk_usage(nearest)
    except (OSError, StopIteration):
        return Disk(purpose, path, False, None, False, None, None)
    writable = os.access(nearest, os.W_OK | os.X_OK)
    return Disk(purpose, path, nearest == path, blocked, writable, usage.free, usage.total)


def disk_check(disk: Disk) -> Check:
    name = f"disk {disk.purpose}"
    if disk.blocked_by is not None:
        found = f"{disk.path} can't be made: {disk.blocked_by} is a file"
        return Check(name, "problem", found, "move the file, or name another folder")
    if disk.free_bytes is None:
        found = f"{disk.path} can't be looked at"
        return Check(name, "problem", found, "check its permissions and its mount")
    later = "" if disk.there else ", made at first use"
    found = f"{format_bytes(disk.free_bytes)} free of {format_bytes(disk.total_bytes)}"
    found += f" ({disk.path}{later})"
    if not disk.writable:
        wrong: Status = "problem" if disk.purpose == "runs" else "warning"
        variable = {"runs": "RUNNER_RUNS", "cache": "RUNNER_CACHE"}.get(
            disk.purpose, "HF_HUB_CACHE"
        )
        return Check(name, wrong, f"{found}; not writable", f"name another folder in {variable}")
    if disk.free_bytes < DISK_WARNING_BYTES:
        advice = "free some, or use another disk: weights and checkpoints take 10 GiB and more"
        return Check(name, "warning", found, advice)
    return Check(name, "ok", found)
