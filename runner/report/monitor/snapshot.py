"""What `runner monitor` knows of a machine at one moment, as values.

Imports only the stdlib and runner.machine's records.

Bytes are int and None means unknown, never 0. "Max" is the largest of the samples since the report
before this one, the newest included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from runner.machine.readings import MigDevice

SNAPSHOT_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A process with its memory: on the GPU (NVML), or on the host (resident set)."""

    pid: int
    used_bytes: int | None
    command: str | None  # the command's name; None where the process can't be seen from here
    run: str | None  # the run that it belongs to


@dataclass(frozen=True, slots=True)
class RunView:
    """A run that lives, or the one that was asked for, as its own guard measures it."""

    name: str
    device: Literal["cuda", "cpu"]
    gpu_indices: tuple[int, ...]
    gpu_uuids: tuple[str, ...]
    budget_bytes: int | None  # on each of its GPUs, or of host memory; None: it has none
    own_bytes: int | None  # by memory.jsonl; of a GPU run, on the GPU where it uses most
    own_max_bytes: int | None
    attribution: str | None  # how it is known, as in memory.jsonl
    ended: bool
    waiting: bool  # in the queue for a GPU


@dataclass(frozen=True, slots=True)
class CardShare:
    """A run on one GPU."""

    run: str
    budget_bytes: int | None
    own_bytes: int | None  # its processes on this GPU, as NVML lists them
    own_max_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One GPU. `failure` says why, where nothing could be read."""

    index: int
    uuid: str | None
    name: str | None
    total_bytes: int | None
    used_bytes: int | None
    used_max_bytes: int | None
    free_bytes: int | None
    reserved_bytes: int | None
    memory_api: int | None
    utilization_percent: int | None
    power_watts: float | None
    power_limit_watts: float | None
    temperature_celsius: int | None
    clock_limits: tuple[str, ...] | None  # why the clocks are not higher; (): nothing holds them
    ecc_corrected: int | None  # since the driver was loaded
    ecc_uncorrected: int | None
    xids: tuple[int, ...] | None  # since the monitor began; None: they can't be heard
    mig_mode: bool | None
    mig_devices: tuple[MigDevice, ...] | None
    lost: bool
    runs: tuple[CardShare, ...]
    processes: tuple[ProcessView, ...] | None  # None: the list can't be read
    failure: str | None


@dataclass(frozen=True, slots=True)
class HostView:
    """A machine without a GPU."""

    total_bytes: int
    available_bytes: int
    used_max_bytes: int  # of total less available
    load: tuple[float, float, float]  # over 1, 5 and 15 minutes
    cpu_percent: tuple[float, ...]  # of each core, since the last report or over 0.1 s
    biggest: tuple[ProcessView, ...]  # by resident set, largest first
    run_processes: tuple[ProcessView, ...]

    @property
    def used_bytes(self) -> int:
        """What is not available to a new process."""
        return self.total_bytes - self.available_bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine at one moment: its GPUs, or else the host; and the runs on it."""

    time_unix_seconds: float
    samples: int  # since the last report, this one included
    driver_version: str | None
    devices: tuple[DeviceView, ...]
    host: HostView | None  # None where there are GPUs
    runs: tuple[RunView, ...]
    note: str | None  # why no GPU is shown, where NVML was there to ask
    histories: Mapping[str, History] = field(default_factory=dict)  # by `card_key` and its like

    def to_record(self) -> dict[str, object]:
        """The snapshot, ready for JSON; histories are for the eye and left out."""
        record = asdict(self, dict_factory=_without_histories)
        return {"schema_version": SNAPSHOT_SCHEMA_VERSION, **record}


def _without_histories(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {key: value for key, value in pairs if key != "histories"}


class History:
    """The largest value in each stretch of `column_seconds`, for a sparkline."""

    def __init__(self, column_seconds: float, columns: int = 240) -> None:
        self.column_seconds = column_seconds
        self._columns = columns
        self._largest: dict[int, int] = {}

    def add(self, time_unix_seconds: float, value: int | None) -> None:
        """Take in a sample, in any order; None leaves a gap."""
        if value is None:
            return
        column = int(time_unix_seconds // self.column_seconds)
        self._largest[column] = max(value, self._largest.get(column, value))
        if len(self._largest) > 2 * self._columns:
            oldest = max(self._largest) - self._columns
            self._largest = {at: kept for at, kept in self._largest.items() if at > oldest}

    def latest(self, count: int, now_unix_seconds: float | None = None) -> list[int | None]:
        """The last `count` columns, oldest first, up to now or to the newest sample."""
        if not self._largest:
            return [None] * count
        last = max(self._largest)
        if now_unix_seconds is not None:
            now = int(now_unix_seconds // self.column_seconds)
            if now - last > 1:  # a column that has only begun may have no sample yet
                last = now
        return [self._largest.get(at) for at in range(last - count + 1, last + 1)]


def card_key(index: int) -> str:
    """The history of a GPU's used memory."""
    return f"GPU {index}"


def run_key(name: str) -> str:
    """The history of a run's own memory."""
    return f"run {name}"


HOST_KEY = "host"


def largest(*values: int | None) -> int | None:
    """The largest of what is known; None where nothing is."""
    return max((value for value in values if value is not None), default=None)
