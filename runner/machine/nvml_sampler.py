"""How much memory the run uses on its GPUs now, and how that is known.

May import the standard library, psutil and this package; whose memory is whose is decided by
`attribution`. A sampler never raises for what it could not read: the sample says so, with own_bytes
None.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import psutil

from runner.machine.attribution import Attributed, Owner, attribute, start_history
from runner.machine.container_cgroup import runs_in
from runner.machine.nvml import NvmlFailed
from runner.machine.readings import Attribution, DeviceReading, DeviceSource, Sample

Figure: TypeAlias = tuple[int, Attribution, int | None]
"""The run's bytes on a GPU, how that is known, the GPU's total."""

Reported: TypeAlias = tuple[int, float]
"""What the trainer says that it holds: bytes, and when it said so (unix seconds)."""

_SHORTEST_CONTAINER_ID = 12


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
        self._histories = {index: start_history(baseline.get(index)) for index in self._indices}

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

        figures: list[Figure] = []
        unresolved: list[tuple[DeviceReading, Attributed]] = []
        for reading in readings:
            found = self._attribute(reading, members, container_id, members_known=known)
            if found.is_by_process and found.own_bytes is not None:
                figures.append((found.own_bytes, found.attribution, reading.total_bytes))
            else:
                unresolved.append((reading, found))
        fresh, by_trainer = True, False
        if len(figures) < len(self._indices):
            reported = self._reported()
            stand_in, unattributed = _otherwise(unresolved, reported)
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

    def _attribute(
        self,
        reading: DeviceReading,
        members: Mapping[int, psutil.Process],
        container_id: str | None,
        *,
        members_known: bool,
    ) -> Attributed:
        """What of a GPU is the run's, its history with this reading being kept."""
        owners = {
            process.pid: self._owner(process.pid, members, container_id, members_known)
            for process in reading.processes or ()
        }
        index = reading.index
        found = attribute(
            reading,
            owners,
            self._baseline.get(index),
            self._histories[index],
            members_known=members_known,
        )
        self._histories[index] = found.history
        return found

    def _owner(
        self,
        pid: int,
        members: Mapping[int, psutil.Process],
        container_id: str | None,
        members_known: bool,
    ) -> Owner:
        """Who a listed process is; one of the run's is remembered."""
        if members_known:
            member = members.get(pid) or self._member(pid)
            if member is not None and (member.is_running() or not psutil.pid_exists(pid)):
                self._remember(pid, member)
                return Owner.MEMBER
        if self._left_behind(pid):
            return Owner.LEFT_BEHIND
        if not members_known:
            return Owner.STRANGER  # or the run's own: nobody can say
        if container_id is not None and runs_in(container_id, pid):
            self._remember(pid, _process(pid))
            return Owner.CONTAINER
        return Owner.STRANGER if psutil.pid_exists(pid) else Owner.HIDDEN

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
    unresolved: list[tuple[DeviceReading, Attributed]], reported: Reported | None
) -> tuple[list[Figure], list[str]]:
    """Figures for GPUs on which NVML's list does not settle it, and what stays unknown."""
    if reported is not None:
        totals = {reading.total_bytes for reading, _ in unresolved}
        total = totals.pop() if len(totals) == 1 else None
        return [(reported[0], Attribution.TRAINER, total)], []
    figures: list[Figure] = []
    unknown: list[str] = []
    for reading, found in unresolved:
        if found.own_bytes is not None:
            figures.append((found.own_bytes, found.attribution, reading.total_bytes))
        elif not reading.lost:
            unknown.append(f"GPU {reading.index}: memory can't be told to be the run's own")
    return figures, unknown


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
