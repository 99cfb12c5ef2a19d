"""Sample the memory that a run uses, and its source: on GPUs by NVML, on the host by /proc.

May import the stdlib, psutil and this package's readings and nvml. A sampler never raises for what
it could not read: the sample says so, with own_bytes None.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import psutil

from runner.common.units import MIB
from runner.machine.nvml import NvmlFailed
from runner.machine.proc import high_water_bytes
from runner.machine.readings import Attribution, DeviceReading, DeviceSource, Sample

# Without a process on it a GPU's use still moves a little as the driver comes and goes.
IDLE_SLACK_BYTES = 64 * MIB

Reported: TypeAlias = tuple[int, float]
"""What the trainer says that it holds: bytes, and when it said so (unix seconds)."""

_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_SHORTEST_CONTAINER_ID = 12


class Schedule:
    """Absolute deadlines on the monotonic clock, so that slow samples don't shift later ones.

    Deadlines that had passed before they were waited for are skipped and counted in `overruns`.
    """

    def __init__(self, start_seconds: float) -> None:
        self._deadline_seconds = start_seconds
        self.overruns = 0

    def wait_seconds(self, now_seconds: float, interval_seconds: float) -> float:
        """Move to the next deadline; how long it is until then. The interval may change."""
        self._deadline_seconds += interval_seconds
        late = now_seconds - self._deadline_seconds
        if late > 0:
            missed = math.ceil(late / interval_seconds)
            self.overruns += missed
            self._deadline_seconds += missed * interval_seconds
        return max(0.0, self._deadline_seconds - now_seconds)


class HostSampler:
    """The host memory of the run's processes: their proportional set sizes (PSS), added up.

    PSS shares a page among those who map it, so forked workers are not counted twice. The kernel
    walks every page of a process to tell it (14 ms for 3 GiB in small pages, measured), too much
    ten times a second: it is asked once in `exact_seconds`, and in between each process's PSS moves
    with its RSS, which is a counter. Where PSS is not told, RSS stands in for that process and
    `measure` says "rss": too large a figure where memory is shared.
    """

    def __init__(
        self, members: Callable[[], list[psutil.Process]], exact_seconds: float = 1.0
    ) -> None:
        self._members = members
        self._exact_seconds = exact_seconds
        self._known: dict[psutil.Process, _HostReading] = {}

    def sample(self) -> Sample:
        """One sample now."""
        own: int | None = None
        spike = 0
        measure: Literal["pss", "rss"] | None = None
        known: dict[psutil.Process, _HostReading] = {}
        failure = None
        free = total = None
        try:
            members = self._members()
            # a fork halves its parent's share: with a new member nothing known holds any more
            exact = any(process not in self._known for process in members)
            for process in members:
                reading = self._read(process, exact=exact)
                if reading is None:
                    continue  # ended since it was listed
                known[process] = reading
                own = reading.now_bytes if own is None else own + reading.now_bytes
                spike = max(spike, reading.spike_bytes)
                measure = "rss" if "rss" in (measure, reading.measure) else "pss"
            if own is None:
                failure = "no live process of the run"
            memory = psutil.virtual_memory()
            free, total = memory.available, memory.total
        except (psutil.Error, OSError) as error:
            own = measure = None
            spike = 0
            failure = f"host memory can't be read: {error}"
        self._known = known
        return Sample(
            time_unix_seconds=time.time(),
            monotonic_seconds=time.monotonic(),
            kind="host",
            own_bytes=own,
            attribution=Attribution.NONE if own is None else Attribution.HOST_TREE,
            free_bytes=free,
            total_bytes=total,
            devices=(),
            processes=len(known),
            failure=failure,
            measure=measure,
            high_water_bytes=own + spike if own is not None and spike else None,
        )

    def _read(self, process: psutil.Process, *, exact: bool) -> _HostReading | None:
        """One process's memory; None where it has ended (a zombie as well: it holds none)."""
        now = time.monotonic()
        last = self._known.get(process)
        try:
            fresh = last is not None and now - last.exact_at_seconds < self._exact_seconds
            if last is not None and fresh and not exact:
                rss = int(process.memory_info().rss)
                moved = rss - last.rss_bytes
                reading = replace(last, now_bytes=max(0, last.exact_bytes + moved))
            else:
                try:
                    full = process.memory_full_info()
                    pss, rss = int(full.pss), int(full.rss)
                    reading = _HostReading(pss, pss, rss, now, "pss")
                except (psutil.AccessDenied, AttributeError, NotImplementedError):
                    rss = int(process.memory_info().rss)
                    reading = _HostReading(rss, rss, rss, now, "rss")
        except psutil.NoSuchProcess:
            return None
        mark = high_water_bytes(process.pid)
        before = last.mark_bytes if last is not None else None
        rose = mark is not None and mark != before  # or it has executed another program
        spike = max(0, mark - rss) if mark is not None and rose else 0
        return replace(reading, mark_bytes=mark, spike_bytes=spike)


@dataclass(frozen=True, slots=True)
class _HostReading:
    """One process's memory in bytes, and the last reading that was exact."""

    now_bytes: int
    exact_bytes: int
    rss_bytes: int  # at the exact reading
    exact_at_seconds: float  # monotonic
    measure: Literal["pss", "rss"]
    mark_bytes: int | None = None
    """The most RSS that it ever had, by the kernel."""
    spike_bytes: int = 0
    """By how much that mark, if it rose since the reading before, lies above the RSS now."""


def take_baseline(source: DeviceSource, device_indices: Iterable[int]) -> dict[int, DeviceReading]:
    """Readings of the GPUs before the run starts, by index; a GPU that can't be read is left out.

    They tell who was there before, and how much was in use.
    """
    baseline = {}
    for index in device_indices:
        try:
            baseline[index] = source.read(index)
        except NvmlFailed:
            continue
    return baseline


class NvmlSampler:
    """The run's memory on its GPUs, by the strongest attribution that this machine gives.

    For each GPU: the processes that NVML lists and that are members, or are in the container
    (`container_id`, at least 12 digits of it; None until it is known); else what the trainer
    reports (`reported`: on its fullest GPU with its overhead, None where it has said nothing
    lately); else the GPU's total less the baseline, only where NVML shows the run's processes
    without their bytes and has never shown another's. Else the memory is unattributed, own_bytes
    is None, and nothing must be stopped for it.

    `members` may lack what is new; `member` is asked for a pid that NVML lists and they lack.
    A pid counts only with the process that it stood for: one that is another's by now is another's.
    """

    def __init__(
        self,
        nvml: DeviceSource,
        device_indices: Iterable[int],
        members: Callable[[], list[psutil.Process]],
        baseline: Mapping[int, DeviceReading],
        container_id: Callable[[], str | None] = lambda: None,
        reported: Callable[[], Reported | None] = lambda: None,
        member: Callable[[int], psutil.Process | None] = lambda _: None,
    ) -> None:
        self._nvml = nvml
        self._indices = tuple(device_indices)
        if not self._indices:
            raise ValueError("expected at least one device index")
        self._members = members
        self._member = member
        self._baseline = baseline
        self._container_id = container_id
        self._reported = reported
        self._reported_at: float | None = None
        self._holders: dict[int, psutil.Process | None] = {}
        self._seen: dict[int, psutil.Process | None] = {}
        # GPUs that somebody else used, before or since: their totals say nothing about us.
        self._shared = {index for index in self._indices if _occupied(baseline.get(index))}

    @property
    def seen(self) -> dict[int, psutil.Process | None]:
        """Every process of the run that NVML has listed so far, by pid; None where it was gone by
        the time it was looked at.
        """
        return dict(self._seen)

    def sample(self) -> Sample:
        """One sample now: about 10 microseconds per GPU besides the listing of members."""
        readings: list[DeviceReading] = []
        failures: list[str] = []
        try:
            members = {process.pid: process for process in self._members()}
        except (psutil.Error, OSError) as error:
            members = {}
            failures.append(f"the run's processes can't be listed: {error}")
        # Without knowing the run's processes, none that NVML lists can be called another's.
        container_id = self._container_id()
        if container_id is not None and len(container_id) < _SHORTEST_CONTAINER_ID:
            container_id = None  # too short to name one container among many
        known = bool(members) or container_id is not None
        for index in self._indices:
            try:
                readings.append(self._nvml.read(index))
            except NvmlFailed as error:
                failures.append(str(error))
        failures += [f"GPU {reading.index} is lost" for reading in readings if reading.lost]

        figures: list[tuple[int, Attribution, int | None]] = []  # own, how, GPU's total
        unresolved: list[DeviceReading] = []
        for reading in readings:
            if not known and any(
                not self._left_behind(process.pid) for process in reading.processes or ()
            ):
                self._shared.add(reading.index)  # by whom, nobody can say
            found = self._by_process(reading, members, container_id) if known else None
            if found is None:
                unresolved.append(reading)
            else:
                figures.append((*found, reading.total_bytes))
        fresh, by_trainer = True, False
        if len(figures) < len(self._indices):
            reported = self._reported()
            stand_in, unattributed = self._otherwise(unresolved, reported)
            figures += stand_in
            failures += unattributed
            by_trainer = reported is not None
        if len(readings) == len(self._indices):
            self._forget(readings)

        own, attribution, total = max(
            figures, key=lambda figure: figure[0], default=(None, Attribution.NONE, None)
        )
        if attribution is Attribution.TRAINER and reported is not None:
            fresh, self._reported_at = reported[1] != self._reported_at, reported[1]
        free = [reading.free_bytes for reading in readings if reading.free_bytes is not None]
        return Sample(
            time_unix_seconds=time.time(),
            monotonic_seconds=time.monotonic(),
            kind="gpu",
            own_bytes=own,
            attribution=attribution,
            free_bytes=min(free, default=None),
            total_bytes=total,
            devices=tuple(readings),
            processes=len(members),
            failure="; ".join(failures) or None,
            measure=None if own is None or attribution is Attribution.TRAINER else "nvml",
            fresh=fresh,
            complete=by_trainer or len(figures) == len(self._indices),
        )

    def _by_process(
        self,
        reading: DeviceReading,
        members: Mapping[int, psutil.Process],
        container_id: str | None,
    ) -> tuple[int, Attribution] | None:
        """The run's bytes on a GPU by the processes that NVML lists, or None.

        Zero is a figure too, but only where the list is seen to work: NVML gives host pids, and
        inside a container its list is empty, or full of pids that are not there.
        """
        if reading.lost or reading.processes is None:
            return None
        own: int | None = 0
        listed = False
        by_container = False
        hidden = False
        for process in reading.processes:
            pid = process.pid
            member = members.get(pid) or self._member(pid)
            if member is not None and (member.is_running() or not psutil.pid_exists(pid)):
                self._remember(pid, member)
            elif self._left_behind(pid):
                pass
            elif container_id is not None and _runs_in(container_id, pid):
                self._remember(pid, _process(pid))
                by_container = True
            else:
                self._shared.add(reading.index)
                hidden = hidden or not psutil.pid_exists(pid)
                continue
            listed = True
            # A known part of an unknown whole would read as a low figure: unknown, then.
            if own is None or process.used_bytes is None:
                own = None
            else:
                own += process.used_bytes
        how = Attribution.CONTAINER_PID if by_container else Attribution.NVML_PID
        if listed:
            return None if own is None else (own, how)
        if hidden:
            return None
        if reading.processes:
            return 0, how  # others are on the GPU, the run is not
        before = self._baseline.get(reading.index)
        if before is None or before.used_bytes is None or reading.used_bytes is None:
            return None
        idle = reading.used_bytes <= before.used_bytes + IDLE_SLACK_BYTES
        return (0, how) if idle else None

    def _remember(self, pid: int, process: psutil.Process | None) -> None:
        self._holders[pid] = self._seen[pid] = process

    def _left_behind(self, pid: int) -> bool:
        """A process of the run that has ended (or waits to be reaped), its memory still on the
        GPU. Not one that got the pid since.
        """
        if pid not in self._holders:
            return False
        if not psutil.pid_exists(pid):
            return True
        process = self._holders[pid]
        if process is not None and process.is_running():
            return True
        del self._holders[pid]  # the pid is another's from now on, also after that one's end
        return False

    def _forget(self, readings: Iterable[DeviceReading]) -> None:
        """A pid that has left every GPU stands for nothing: its next holder is another process."""
        if any(reading.processes is None for reading in readings):
            return
        listed = {process.pid for reading in readings for process in reading.processes or ()}
        for pid in self._holders.keys() - listed:
            del self._holders[pid]

    def _otherwise(
        self, unresolved: list[DeviceReading], reported: Reported | None
    ) -> tuple[list[tuple[int, Attribution, int | None]], list[str]]:
        """Figures for GPUs on which NVML's list does not settle it, and what stays unknown."""
        if reported is not None:
            totals = {reading.total_bytes for reading in unresolved}
            total = totals.pop() if len(totals) == 1 else None
            return [(reported[0], Attribution.TRAINER, total)], []
        figures: list[tuple[int, Attribution, int | None]] = []
        unknown: list[str] = []
        for reading in unresolved:
            delta = self._delta(reading)
            if delta is not None:
                figures.append((delta, Attribution.DEVICE_DELTA, reading.total_bytes))
            elif not reading.lost:
                unknown.append(f"GPU {reading.index}: memory can't be told to be the run's own")
        return figures, unknown

    def _delta(self, reading: DeviceReading) -> int | None:
        """The GPU's total less what was there before, only where nobody else is or was on it.

        That needs a list that shows the run's own processes: an empty one, as inside a container,
        shows no neighbours either. (A watchdog on bare totals once killed a healthy neighbour.)
        """
        before = self._baseline.get(reading.index)
        # What is listed and not the run's own has put the GPU among the shared ones.
        if reading.index in self._shared or before is None or not reading.processes:
            return None
        if reading.used_bytes is None or before.used_bytes is None:
            return None
        if reading.memory_api != before.memory_api:
            return None  # one counts the driver's share and the other does not
        return max(0, reading.used_bytes - before.used_bytes)


def _occupied(reading: DeviceReading | None) -> bool:
    """Whether somebody is known, or can't be ruled out, to have been on a GPU before the run."""
    return reading is None or reading.processes is None or bool(reading.processes)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _runs_in(container_id: str, pid: int) -> bool:
    """Whether a host process belongs to a container, by its cgroup's path (no root)."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return in_container(text, container_id)


def in_container(cgroup_text: str, container_id: str) -> bool:
    """Whether the text of a /proc/PID/cgroup names the container, by its id or the id's start.

    Docker, containerd and podman all put the 64 hexadecimal digits into the path, in cgroup v1
    and v2, with and without systemd.
    """
    return any(
        found.startswith(container_id.lower()) for found in _CONTAINER_ID.findall(cgroup_text)
    )
