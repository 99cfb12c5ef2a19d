"""How many CPU cores a run may use: those of its affinity, at most what cgroups' quotas pay for.

Reads /proc and /sys; standard library only. A container with `--cpus 2` on 64 cores sees all of
them, and 64 threads on the time of 2 are several times slower than 2. The load of the moment does
not count: it would give the same job another plan each time, and other bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def usable_cores(proc: Path = PROC, mount: Path = MOUNT) -> int:
    """A count, at least 1. What can't be read sets no bound."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(proc, mount)
    return cores if quota is None else max(1, min(cores, int(quota + 1e-9)))


def cpu_quota(proc: Path = PROC, mount: Path = MOUNT) -> float | None:
    """Cores' worth of time that this process's cgroups get, the least of them; None without one.

    Sources: docs.kernel.org/admin-guide/cgroup-v2.html, cpu.max ("$MAX $PERIOD"); cgroup v1's
    cpu.cfs_quota_us (-1 is none) over cpu.cfs_period_us.
    """
    found: list[float] = []
    for line in _text(proc).splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            found += _quotas(mount, path, _quota_v2)
        elif "cpu" in names.split(","):
            for folder in (mount / names, mount / "cpu"):
                if folder.is_dir():
                    found += _quotas(folder, path, _quota_v1)
                    break
    return min(found, default=None)


def _quotas(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    parts = [part for part in path.split("/") if part and part != ".."]
    folders = [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return [quota for folder in folders if (quota := read(folder)) is not None]


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return _share(quota, period)


def _quota_v1(folder: Path) -> float | None:
    return _share(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> float | None:
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or nothing
        return None
    return share if share > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
