"""Host memory, the cgroup's limit on it, and the space for what processes share.

Imports the standard library, psutil, units and the doctor's `check` and `host`.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from runner.common.units import GIB, format_bytes
from runner.machine.doctor.check import Check
from runner.machine.doctor.host import Host

MEMORY_WARNING_BYTES = 4 * GIB  # importing the training stack alone takes about 1 GiB

SHARED_WARNING_BYTES = 1 * GIB


@dataclass(frozen=True)
class Memory:
    """Host memory and the space for what processes share, in bytes."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    """The cgroup's, where it is below the total."""
    shared_bytes: int | None
    """The size of /dev/shm; None where there is none."""


def read_memory() -> Memory:
    found = psutil.virtual_memory()
    limit = read_cgroup_limit(Path("/sys/fs/cgroup"))
    try:
        shm = os.statvfs("/dev/shm")  # noqa: S108 - asked for its size
        shared: int | None = shm.f_blocks * shm.f_frsize
    except OSError:
        shared = None
    binding = limit if limit is not None and limit < found.total else None
    return Memory(found.total, found.available, binding, shared)


def read_cgroup_limit(mount: Path) -> int | None:
    """The smallest memory limit above this process (cgroup v2, else v1), in bytes."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((place / name).read_text()))
            if place == top:
                break
    return min(limits, default=None)


def memory_check(memory: Memory) -> Check:
    found = f"{format_bytes(memory.available_bytes)} available"
    found += f" of {format_bytes(memory.total_bytes)}"
    available = memory.available_bytes
    if memory.limit_bytes is not None:
        found += f"; this process's cgroup may use {format_bytes(memory.limit_bytes)}"
        available = min(available, memory.limit_bytes)
    if available < MEMORY_WARNING_BYTES:
        return Check("memory", "warning", found, "end what else runs, or use a larger machine")
    return Check("memory", "ok", found)


def shared_memory_check(memory: Memory, host: Host) -> Check:
    name = "shared memory"
    advice = "NCCL and data loaders share memory through it: "
    advice += "start the container with --shm-size 8g" if host.container else "mount it larger"
    if memory.shared_bytes is None:
        return Check(name, "warning", "there is no /dev/shm", advice)
    found = f"{format_bytes(memory.shared_bytes)} in /dev/shm"
    if memory.shared_bytes < SHARED_WARNING_BYTES:
        return Check(name, "warning", found, advice)
    return Check(name, "ok", found)
