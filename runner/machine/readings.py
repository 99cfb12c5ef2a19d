"""Device readings and memory samples, as values. Imports only the stdlib.

Bytes are int, and None means unknown. A failed reading is never 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal, Protocol

SAMPLE_SCHEMA_VERSION = 1


class Attribution(StrEnum):
    """How it is known that memory belongs to the run, strongest first."""

    CGROUP = "cgroup_limit"  # the driver's own limit for the container, read back
    NVML_PID = "nvml_pid"  # NVML lists a process of the run
    CONTAINER_PID = "container_pid"  # NVML lists a process in the run's container
    TRAINER = "trainer_reported"  # the trainer's own count plus its measured overhead
    DEVICE_DELTA = "device_delta"  # GPU total minus what was there before; nobody else on it
    HOST_TREE = "host_process_tree"  # host memory of the run's processes
    NONE = "unattributed"

    @property
    def enforceable(self) -> bool:
        """Whether a run may be stopped on a figure of this kind."""
        return self is not Attribution.NONE


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that NVML lists on a GPU. Bytes are None where the driver does not tell."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One GPU at one moment. Whatever the driver could not say is None."""

    index: int
    uuid: str | None
    name: str | None
    total_bytes: int | None
    used_bytes: int | None  # under memory API 1 this includes what the driver reserves
    free_bytes: int | None
    reserved_bytes: int | None  # held by the driver; None under memory API 1
    memory_api: Literal[1, 2] | None
    utilization_percent: int | None
    temperature_celsius: int | None
    power_watts: float | None
    lost: bool  # fallen off the bus, or in need of a reset: terminal for this GPU
    processes: tuple[DeviceProcess, ...] | None  # None: the list itself could not be read


@dataclass(frozen=True, slots=True)
class MigDevice:
    """A part of a GPU in MIG mode. Whatever the driver could not say is None."""

    index: int
    uuid: str | None
    name: str | None  # such as "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    total_bytes: int | None
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """What else a GPU says of itself, which no budget needs. None: the driver does not say."""

    power_limit_watts: float | None = None  # what the driver holds the GPU to
    # why the clocks are not higher, in words; () where nothing holds them back
    clock_limits: tuple[str, ...] | None = None
    ecc_corrected: int | None = None  # since the driver was loaded
    ecc_uncorrected: int | None = None
    mig_mode: bool | None = None
    mig_devices: tuple[MigDevice, ...] | None = None  # None: not in MIG mode, or not told


class DeviceSource(Protocol):
    """Where device readings come from: `nvml.Nvml`, or a stand-in in tests."""

    def devices(self) -> list[tuple[int, str | None]]: ...

    def read(self, index: int) -> DeviceReading: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """The run's memory at one moment: one line of memory.jsonl."""

    time_unix_seconds: float
    monotonic_seconds: float
    kind: Literal["gpu", "host"]
    own_bytes: int | None  # gpu: on the GPU where the run uses most, since budgets are per GPU
    attribution: Attribution
    free_bytes: int | None  # gpu: of the tightest of the run's GPUs
    total_bytes: int | None  # gpu: of the GPU that own_bytes speaks of
    devices: tuple[DeviceReading, ...]
    processes: int  # live processes of the run
    failure: str | None  # what could not be read
    measure: Literal["pss", "rss", "nvml"] | None  # None: unknown, or counted by the trainer
    fresh: bool = True  # False: the same report of the trainer's as in the sample before
    complete: bool = True  # False: a card of the run has no figure, so own_bytes may be too low
    high_water_bytes: int | None = None
    """Host: the most since the sample before, by the kernel's high-water marks; None: no more."""

    @property
    def gpu_lost(self) -> bool:
        """Whether one of the run's GPUs is gone."""
        return any(device.lost for device in self.devices)

    def to_record(self) -> dict[str, object]:
        """The sample, ready for JSON."""
        return {"schema_version": SAMPLE_SCHEMA_VERSION, **asdict(self)}
