"""The monitor's watch over a machine: samples each second or oftener, and a Snapshot a report.

May import the stdlib, psutil, runner.machine and the monitor's other parts. Draws nothing. A GPU
that can't be read is shown with its failure; nothing here raises for it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psutil

from runner.machine.nvml import NvmlFailed
from runner.machine.readings import DeviceHealth, DeviceReading, DeviceSource
from runner.report.monitor.processes import OnCards, Owners, largest_first, on_host
from runner.report.monitor.runs import LiveRuns
from runner.report.monitor.snapshot import (
    HOST_KEY,
    CardShare,
    DeviceView,
    History,
    HostView,
    ProcessView,
    RunView,
    Snapshot,
    card_key,
    largest,
    run_key,
)

SAMPLE_SECONDS = 1.0
BIGGEST_PROCESSES = 5
# A core's use is a figure over a time: this is what the first reading takes.
CPU_WINDOW_SECONDS = 0.1
# What costs more than a sample is asked for at most so often.
RUNS_SECONDS = 5.0
GUARDS_SECONDS = 0.9  # they write a line a second
HOST_PROCESSES_SECONDS = 5.0
HEALTH_SECONDS = 1.0


class MonitorSource(DeviceSource, Protocol):
    """A DeviceSource that also knows its driver: nvml.Nvml."""

    def driver_version(self) -> str | None: ...


def samples_in(interval_seconds: float) -> int:
    """How many samples a reporting period has, so that they are a second apart or less."""
    return max(1, math.ceil(interval_seconds / SAMPLE_SECONDS))


@dataclass(slots=True)
class _Card:
    """A GPU in the interval under way."""

    reading: DeviceReading
    failure: str | None
    processes: tuple[ProcessView, ...] | None
    used_max_bytes: int | None = None
    own_bytes: dict[str, int | None] | None = None
    own_max_bytes: dict[str, int | None] | None = None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is asked for seldom: a value and when it was read, in monotonic seconds."""

    at_seconds: float
    health: DeviceHealth


class Watch:
    """What is known of the machine, sample by sample: `sample` often, `report` once an interval."""

    def __init__(
        self,
        nvml: MonitorSource | None,
        runs: LiveRuns,
        *,
        interval_seconds: float = 5.0,
        health: Callable[[int], DeviceHealth] = lambda _: DeviceHealth(),
        xids: Callable[[int], tuple[int, ...] | None] = lambda _: None,
    ) -> None:
        self._nvml = nvml
        self._runs = runs
        self._health = health
        self._xids = xids
        self._owners = Owners()
        self._on_cards = OnCards(self._owners)
        self._column_seconds = max(interval_seconds, SAMPLE_SECONDS)
        self._histories: dict[str, History] = {}
        self._cards: dict[int, _Card] = {}
        self._kept: dict[int, _Kept] = {}
        self._samples = 0
        self._began_unix_seconds = time.time()  # the interval under way
        self._note: str | None = None
        self._host_used_max = 0
        self._runs_at = self._guards_at = -math.inf
        self._views: tuple[RunView, ...] = ()
        self._host_at = -math.inf
        self._host_processes: tuple[tuple[ProcessView, ...], tuple[ProcessView, ...]] = ((), ())
        self._cores_seen = False

    def sample(self) -> None:
        """Read the GPUs' memory and processes, or the host's memory, and the runs' records."""
        now, monotonic = time.time(), time.monotonic()
        if monotonic - self._runs_at >= RUNS_SECONDS:
            self._runs.refresh()
            self._owners.learn(self._runs.by_pid(), self._runs.by_container())
            self._runs_at = monotonic
        self._samples += 1
        if monotonic - self._guards_at >= GUARDS_SECONDS:
            self._hear_guards()
        self._sample_cards(now)
        if not self._cards:
            memory = psutil.virtual_memory()
            used = memory.total - memory.available
            self._host_used_max = max(self._host_used_max, used)
            self._history(HOST_KEY).add(now, used)

    def report(self) -> Snapshot:
        """The last sample with the largest figures since the last report; begins a new interval."""
        now = time.time()
        self._hear_guards()
        driver = None
        if self._nvml is not None and self._cards:
            try:
                driver = self._nvml.driver_version()
            except NvmlFailed:
                driver = None
        snapshot = Snapshot(
            time_unix_seconds=now,
            samples=self._samples,
            driver_version=driver,
            devices=tuple(self._device(card, self._views) for card in self._cards.values()),
            host=None if self._cards else self._host(),
            runs=self._views,
            note=self._note,
            histories=dict(self._histories),
        )
        self._began_unix_seconds = now
        self._samples = self._host_used_max = 0
        for run in self._runs.runs:
            run.begin()
        for card in self._cards.values():
            card.used_max_bytes = card.own_max_bytes = None
        return snapshot

    # The runs -----------------------------------------------------------------------------------

    def _hear_guards(self) -> None:
        """Take in what the runs' guards measured, however far back their records are read."""
        for run in self._runs.runs:
            first_look = run_key(run.name) not in self._histories
            history = self._history(run_key(run.name))
            for record in run.update():
                at = record.get("time_unix_seconds")
                if not isinstance(at, int | float):
                    continue
                own = record.get("own_bytes")
                history.add(at, own)
                if at >= self._began_unix_seconds:
                    run.saw(own)
                for device in record.get("devices") or () if first_look else ():
                    index = device["index"]
                    if index is not None:
                        self._history(card_key(index)).add(at, device["used_bytes"])
        self._guards_at = time.monotonic()
        self._views = self._runs.views(time.time())

    def _history(self, key: str) -> History:
        if key not in self._histories:
            self._histories[key] = History(self._column_seconds)
        return self._histories[key]

    # The GPUs ----------------------------------------------------------------------------------

    def _sample_cards(self, now_unix_seconds: float) -> None:
        if self._nvml is None:
            return
        try:
            listed = self._nvml.devices()
        except NvmlFailed as error:
            self._cards, self._note = {}, f"NVML can't be read: {error}"
            return
        self._note = None if listed else "NVML lists no GPU"
        before, self._cards = self._cards, {}
        self._on_cards.begin()
        for index, uuid in listed:
            card = self._read(self._nvml, index, uuid)
            used = card.reading.used_bytes
            self._history(card_key(index)).add(now_unix_seconds, used)
            on_it = [run for run in self._views if _is_on(run, card.reading)]
            card.own_bytes = {run.name: _own_on(card, run) for run in on_it}
            earlier = before.get(index)
            card.used_max_bytes = largest(used, earlier.used_max_bytes if earlier else None)
            maxima = (earlier.own_max_bytes if earlier else None) or {}
            card.own_max_bytes = {
                name: largest(own, maxima.get(name)) for name, own in card.own_bytes.items()
            }
            self._cards[index] = card

    def _read(self, nvml: MonitorSource, index: int, uuid: str | None) -> _Card:
        try:
            reading = nvml.read(index)
            failure = "the GPU is lost; it needs a reset" if reading.lost else None
        except NvmlFailed as error:
            failure = str(error)
            reading = DeviceReading(
                index, uuid, None, None, None, None, None, None, None, None, None, False, None
            )
        if reading.processes is None:
            return _Card(reading, failure, None)
        listed = (self._on_cards.view(one.pid, one.used_bytes) for one in reading.processes)
        return _Card(reading, failure, largest_first(listed))

    def _device(self, card: _Card, runs: tuple[RunView, ...]) -> DeviceView:
        reading = card.reading
        health = self._health_of(reading)
        own, own_max = card.own_bytes or {}, card.own_max_bytes or {}
        return DeviceView(
            index=reading.index,
            uuid=reading.uuid,
            name=reading.name,
            total_bytes=reading.total_bytes,
            used_bytes=reading.used_bytes,
            used_max_bytes=card.used_max_bytes if reading.used_bytes is not None else None,
            free_bytes=reading.free_bytes,
            reserved_bytes=reading.reserved_bytes,
            memory_api=reading.memory_api,
            utilization_percent=reading.utilization_percent,
            power_watts=reading.power_watts,
            power_limit_watts=health.power_limit_watts,
            temperature_celsius=reading.temperature_celsius,
            clock_limits=health.clock_limits,
            ecc_corrected=health.ecc_corrected,
            ecc_uncorrected=health.ecc_uncorrected,
            xids=self._xids(reading.index),
            mig_mode=health.mig_mode,
            mig_devices=health.mig_devices,
            lost=reading.lost,
            runs=tuple(
                CardShare(run.name, run.budget_bytes, own[run.name], own_max.get(run.name))
                for run in runs
                if run.name in own
            ),
            processes=card.processes,
            failure=card.failure,
        )

    def _health_of(self, reading: DeviceReading) -> DeviceHealth:
        if reading.lost:
            return DeviceHealth()
        now = time.monotonic()
        kept = self._kept.get(reading.index)
        if kept is None or now - kept.at_seconds >= HEALTH_SECONDS:
            kept = self._kept[reading.index] = _Kept(now, self._health(reading.index))
        return kept.health

    # The host -----------------------------------------------------------------------------------

    def _host(self) -> HostView:
        memory = psutil.virtual_memory()
        now = time.monotonic()
        if now - self._host_at >= HOST_PROCESSES_SECONDS:
            self._host_processes = on_host(self._owners, BIGGEST_PROCESSES)
            self._host_at = now
        window = None if self._cores_seen else CPU_WINDOW_SECONDS
        self._cores_seen = True
        biggest, run_processes = self._host_processes
        return HostView(
            total_bytes=memory.total,
            available_bytes=memory.available,
            used_max_bytes=max(self._host_used_max, memory.total - memory.available),
            load=os.getloadavg(),
            cpu_percent=tuple(psutil.cpu_percent(interval=window, percpu=True)),
            biggest=biggest,
            run_processes=run_processes,
        )


def _is_on(run: RunView, reading: DeviceReading) -> bool:
    """Whether a run was planned onto this GPU; by UUID, since indices may change at a reboot."""
    if run.device != "cuda" or run.ended or run.waiting:
        return False
    if run.gpu_uuids and reading.uuid is not None:
        return reading.uuid in run.gpu_uuids
    return reading.index in run.gpu_indices


def _own_on(card: _Card, run: RunView) -> int | None:
    """A run's bytes on a GPU: its processes there, else, of a run on one GPU, its guard's figure.

    A known part of an unknown whole would read as a low figure: unknown, then.
    """
    own = [view.used_bytes for view in card.processes or () if view.run == run.name]
    known = [used for used in own if used is not None]
    if known and len(known) == len(own):
        return sum(known)
    return run.own_bytes if len(run.gpu_indices) == 1 else None


def sample_once(watch: Watch) -> Snapshot:
    """One sample and its report: what `runner monitor --once` shows."""
    watch.sample()
    return watch.report()
