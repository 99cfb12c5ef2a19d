"""Processes as `runner monitor` names them: command, memory, and the run they belong to.

Reads /proc itself, one small file a process: psutil's listing of all processes costs more than the
rest of the monitor together. May import the stdlib, runner.common.terminal, guard.proc,
machine.container_cgroup's `in_container`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.common.terminal import clean_line
from runner.machine.container_cgroup import in_container
from runner.machine.proc import stat_fields
from runner.report.monitor.snapshot import ProcessView

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MOST_ANCESTORS = 100


@dataclass(frozen=True, slots=True)
class Stat:
    """A process by its /proc/PID/stat. The kernel cuts a command's name after 15 letters."""

    pid: int
    command: str
    parent: int
    start_ticks: int
    resident_bytes: int


def read_stat(pid: int) -> Stat | None:
    """A process as it is now; None where there is none to see."""
    found = stat_fields(pid)
    if found is None:
        return None
    name, fields = found
    resident = int(fields[21]) * PAGE_BYTES
    command = clean_line(name.decode(errors="replace"))  # a process names itself as it likes
    return Stat(pid, command, int(fields[1]), int(fields[19]), resident)


def all_stats() -> Iterator[Stat]:
    """Every process that can be seen from here."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - a Path for each process costs as much again
        if name.isdigit():
            found = read_stat(int(name))
            if found is not None:
                yield found


class Owners:
    """Which run a process belongs to: by its ancestors, else by its container.

    What was found stays so as long as the process lives (pid and start time name it); what was not
    found is looked for again once the runs have changed.
    """

    def __init__(self) -> None:
        self._by_pid: Mapping[int, str] = {}
        self._by_container: Mapping[str, str] = {}
        self._known: dict[tuple[int, int], str | None] = {}

    def learn(self, by_pid: Mapping[int, str], by_container: Mapping[str, str]) -> None:
        """The runs that live now: a pid of any process of theirs, and ids of their containers."""
        if by_pid != self._by_pid or by_container != self._by_container:
            self._by_pid, self._by_container = dict(by_pid), dict(by_container)
            self._known = {}

    def run_of(self, stat: Stat) -> str | None:
        """The run of a process, or None."""
        if not self._by_pid and not self._by_container:
            return None
        key = (stat.pid, stat.start_ticks)
        if key not in self._known:
            if len(self._known) > 10_000:  # of processes that ended long ago
                self._known = {}
            self._known[key] = self._by_ancestor(stat) or self._in_container(stat)
        return self._known[key]

    def _by_ancestor(self, stat: Stat) -> str | None:
        current: Stat | None = stat
        for _ in range(_MOST_ANCESTORS):
            if current is None:
                return None
            if current.pid in self._by_pid:
                return self._by_pid[current.pid]
            current = read_stat(current.parent) if current.parent > 0 else None
        return None

    def _in_container(self, stat: Stat) -> str | None:
        """By the cgroup's path: in Docker what trains descends from its shim, not from runner."""
        if not self._by_container:
            return None
        try:
            text = Path(f"/proc/{stat.pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        return next(
            (run for container, run in self._by_container.items() if in_container(text, container)),
            None,
        )


class OnCards:
    """The processes that NVML lists, with their names and runs.

    One that stays listed from sample to sample is looked at again each `fresh_seconds`.
    """

    def __init__(self, owners: Owners, fresh_seconds: float = 5.0) -> None:
        self._owners = owners
        self._fresh_seconds = fresh_seconds
        self._before: dict[int, _Looked] = {}
        self._now: dict[int, _Looked] = {}

    def begin(self) -> None:
        """A new sample: a pid that the one before did not list may be another process by now."""
        self._before, self._now = self._now, {}

    def view(self, pid: int, used_bytes: int | None) -> ProcessView:
        """A process on a GPU; without a name where it can't be seen from here."""
        looked = self._now.get(pid) or self._before.get(pid)
        clock = time.monotonic()
        if looked is None or clock - looked.at_seconds >= self._fresh_seconds:
            looked = _Looked(clock, read_stat(pid))
        self._now[pid] = looked
        stat = looked.stat
        if stat is None:
            return ProcessView(pid, used_bytes, None, None)
        return ProcessView(pid, used_bytes, stat.command, self._owners.run_of(stat))


@dataclass(frozen=True, slots=True)
class _Looked:
    at_seconds: float  # monotonic
    stat: Stat | None


def largest_first(views: Iterable[ProcessView]) -> tuple[ProcessView, ...]:
    """By memory; what is unknown comes last."""
    return tuple(sorted(views, key=lambda view: (-(view.used_bytes or 0), view.pid)))


def on_host(owners: Owners, count: int) -> tuple[tuple[ProcessView, ...], tuple[ProcessView, ...]]:
    """The `count` largest processes of the host, and all that belong to runs; by resident set."""
    every = largest_first(
        ProcessView(stat.pid, stat.resident_bytes, stat.command, owners.run_of(stat))
        for stat in all_stats()
    )
    return every[:count], tuple(view for view in every if view.run is not None)
