"""Find the runs that are active on this machine, with their budgets and their guards' figures.

May import the stdlib, runner.common, runner.runs.folder, and (inside a function) the plan's reader.
Follows a run by its records only, and never writes into its folder.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.common import durable
from runner.common.errors import RunnerError
from runner.common.process_times import start_ticks
from runner.common.processes import host_pid
from runner.common.tail import Tail
from runner.common.terminal import clean_line
from runner.report.monitor.snapshot import RunView, largest
from runner.runs.folder import RunFolder
from runner.runs.metrics import time_of
from runner.runs.record_types import MemoryLine
from runner.runs.records import valid_memory_line, valid_status

# The guard writes a sample each second; what is older than this says nothing of the present.
FRESH_SECONDS = 15.0
# How long a run with an outcome is taken for ended without looking.
ENDED_SECONDS = 30.0
# How much of memory.jsonl is read when a run is first seen: some ten minutes of it.
FIRST_READ_BYTES = 512 * 1024
# And at most at each look from then on.
_LOOK_BYTES = 4 * FIRST_READ_BYTES
_VERDICT = RunFolder(Path()).termination.name


@dataclass(frozen=True, slots=True)
class PlannedMemory:
    """What a run's plan says of its memory."""

    device: Literal["cuda", "cpu"]
    gpu_indices: tuple[int, ...]
    gpu_uuids: tuple[str, ...]
    budget_bytes: int | None


def planned_memory(path: Path) -> PlannedMemory | None:
    """From a plan.yaml; None where it can't be read, which stops no view."""
    from runner.engines.render import read_any_plan

    try:
        plan = read_any_plan(path)
    except RunnerError:
        return None
    launch = plan.launch
    return PlannedMemory(
        launch.device, tuple(launch.gpu_indices), tuple(launch.gpu_uuids), plan.budget.limit_bytes
    )


class FollowedRun:
    """One run: what its plan says, and its guard's figures since the last report."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.planned: PlannedMemory | None = None
        self.pids: frozenset[int] = frozenset()
        self._read: tuple[int, int] | None = None
        self._tail = Tail(folder.memory, newest_bytes=FIRST_READ_BYTES)
        self._last: MemoryLine = {}
        self._largest: int | None = None

    @property
    def name(self) -> str:
        """As it is shown."""
        return clean_line(self.folder.name)

    def read_plan(self) -> None:
        """Read the plan, and again where it was replaced: the supervisor may move a run to other
        GPUs before it starts.
        """
        try:
            status = self.folder.plan.stat()
        except OSError:
            return
        if self._read != (status.st_mtime_ns, status.st_ino):
            self._read = (status.st_mtime_ns, status.st_ino)
            self.planned = planned_memory(self.folder.plan)

    def update(self) -> list[MemoryLine]:
        """Take in the guard's new samples; returns them."""
        records = [valid_memory_line(record) for record in self._tail.read(_LOOK_BYTES)]
        if records:
            self._last = records[-1]
        return records

    def view(self, now_unix_seconds: float) -> RunView | None:
        """The run now, with the largest figure since `begin`; None where its plan can't be read."""
        if self.planned is None:
            return None
        ended = self.folder.is_ended()
        age = now_unix_seconds - (time_of(self._last) or 0.0)
        current = not ended and age <= FRESH_SECONDS
        own = self._last.get("own_bytes") if current else None
        return RunView(
            name=self.name,
            device=self.planned.device,
            gpu_indices=self.planned.gpu_indices,
            gpu_uuids=self.planned.gpu_uuids,
            budget_bytes=self.planned.budget_bytes,
            own_bytes=own,
            own_max_bytes=largest(own, self._largest) if current else None,
            attribution=clean_line(self._last.get("attribution", "")) or None if current else None,
            ended=ended,
            waiting=not ended and durable.is_there(self.folder.queue),
        )

    def saw(self, own_bytes: int | None) -> None:
        """A figure that belongs to the interval under way."""
        self._largest = largest(self._largest, own_bytes)

    def begin(self) -> None:
        """A new interval."""
        self._largest = None


class LiveRuns:
    """Every run under a folder whose supervisor or trainer lives, and one that was named."""

    def __init__(self, root: Path, named: RunFolder | None = None) -> None:
        self._root = root
        self._named = named
        self._pids = HostPids()
        self._known: dict[Path, FollowedRun] = {}
        self._ended: set[str] = set()
        self._ended_since = -math.inf
        self.runs: tuple[FollowedRun, ...] = ()

    def views(self, now_unix_seconds: float) -> tuple[RunView, ...]:
        """The runs now; one whose plan can't be read is left out."""
        views = (run.view(now_unix_seconds) for run in self.runs)
        return tuple(view for view in views if view is not None)

    def refresh(self) -> None:
        """Look for runs that began or ended; one that was resumed is seen within half a minute."""
        found = []
        for folder in self._candidates():
            named = self._named is not None and folder.path == self._named.path
            pids = frozenset() if folder.is_ended() else self._living(folder)
            if not pids and not named:
                self._known.pop(folder.path, None)
                continue
            run = self._known.setdefault(folder.path, FollowedRun(folder))
            run.pids = pids
            run.read_plan()
            found.append(run)
        self.runs = tuple(sorted(found, key=lambda run: run.name))

    def by_pid(self) -> dict[int, str]:
        """pid of each living supervisor and training process -> its run's name."""
        return {pid: run.name for run in self.runs for pid in run.pids}

    def by_container(self) -> dict[str, str]:
        """Container id -> its run's name."""
        out = {}
        for run in self.runs:
            identity = durable.read_word(run.folder.container_id)
            if run.pids and len(identity) >= 12:
                out[identity] = run.name
        return out

    def _candidates(self) -> Iterator[RunFolder]:
        """The named run, and all folders that look like a run without an outcome."""
        now = time.monotonic()
        if now - self._ended_since >= ENDED_SECONDS:  # a resume takes an outcome away
            self._ended, self._ended_since = set(), now
        if self._named is not None:
            yield self._named
        for job in _folders(self._root.absolute()):
            for path in _folders(job):
                # there may be thousands of ended runs: no Path is made for them
                if path in self._ended:
                    continue
                if os.path.exists(f"{path}/{_VERDICT}"):  # noqa: PTH110
                    self._ended.add(path)
                else:
                    folder = RunFolder(Path(path))
                    if self._named is None or folder.path != self._named.path:
                        yield folder

    def _living(self, folder: RunFolder) -> frozenset[int]:
        records = [folder.supervisor, *folder.engine_statuses()]
        pids = (self._pids.of(durable.read_json(path)) for path in records)
        return frozenset(pid for pid in pids if pid is not None)


class HostPids:
    """The pids of recorded processes as seen from here; those in containers are searched once.

    The search goes through all of /proc, so what it found is kept while that process lives, and
    what it did not find is not looked for again: a process that has ended stays so.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], int | None] = {}

    def of(self, record: object) -> int | None:
        """As liveness.host_pid, of what a record file held; None for a damaged one."""
        status = valid_status(record)
        if not status:
            return None
        key = (status.get("pid"), status.get("start_ticks"), status.get("pid_namespace"))
        if key in self._found:
            pid = self._found[key]
            alive = pid is not None and start_ticks(pid) == status.get("start_ticks")
            return pid if alive else None
        self._found[key] = host_pid(status)
        return self._found[key]


def _folders(parent: Path | str) -> list[str]:
    """Paths of the folders in a folder; none where it can't be read."""
    try:
        with os.scandir(parent) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except OSError:
        return []
