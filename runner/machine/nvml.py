"""Read NVIDIA's management library: the only module that imports pynvml, and lazily.

May import the stdlib, pynvml (inside functions) and this package's readings. A figure that a driver
can't give is None; a lost GPU is a reading with `lost=True`; host memory is never given for a
GPU's.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Literal, Protocol, Self, TypeVar

from runner.machine.readings import DeviceProcess, DeviceReading

LIBRARY = "libnvidia-ml.so.1"
# NVML can answer "the list grew while you asked"; the second question nearly always fits.
PROCESS_LIST_ATTEMPTS = 3
NO_MEMORY_LIMIT = 2**64 - 1  # nvml.h's NVML_DEVICE_MEMORY_LIMIT_MAX; pynvml 13.615 doesn't name it
CGROUPS = Path("/sys/fs/cgroup")

_T = TypeVar("_T")


class NvmlUnavailable(Exception):
    """NVML can't be opened.

    `fatal` is False where there simply is no NVIDIA driver, and True where there is one that does
    not work (driver and library of different versions, a GPU detached from this container): then
    no GPU run must start, and the machine must not be taken for one without a GPU.
    """

    def __init__(self, reason: str, fatal: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fatal = fatal


class NvmlFailed(Exception):
    """A question to an open NVML was not answered. Says nothing about how much memory is used."""


class DeviceGone(Exception):
    """GPU_IS_LOST or RESET_REQUIRED: caught in guard.nvml and guard.health, never further up."""


def library_present() -> bool:
    """Whether the driver's library can be loaded. Cheap; says nothing about whether it works."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


class _Memory(Protocol):
    """What pynvml says of a GPU's memory, in bytes; `reserved` in API 2 alone."""

    total: int
    used: int
    free: int
    reserved: int


class _Process(Protocol):
    """What pynvml says of a process on a GPU; None where the driver does not tell."""

    pid: int
    usedGpuMemory: int | None


class Nvml:
    """An open NVML. A context manager: `with Nvml() as nvml: nvml.read(0)`."""

    def __init__(self) -> None:
        self._api: ModuleType | None = None
        self._known: dict[int, tuple[str | None, str | None]] = {}  # uuid and name, as last seen

    def open(self) -> None:
        """Load and initialise the library. Raises NvmlUnavailable."""
        if self._api is not None:
            return
        try:
            api = importlib.import_module("pynvml")
        except ImportError as error:
            raise NvmlUnavailable(f"pynvml can't be imported: {error}", fatal=False) from error
        try:
            api.nvmlInit()
        except api.NVMLLibraryMismatchError as error:  # not an NVMLError
            raise NvmlUnavailable(str(error), fatal=True) from error
        except api.NVMLError as error:
            absent = (api.NVML_ERROR_LIBRARY_NOT_FOUND, api.NVML_ERROR_DRIVER_NOT_LOADED)
            raise NvmlUnavailable(str(error), fatal=error.value not in absent) from error
        self._api = api

    def close(self) -> None:
        """Shut NVML down; whatever it answers to that does not matter any more."""
        if self._api is not None:
            with contextlib.suppress(self._api.NVMLError):
                self._api.nvmlShutdown()
            self._api = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def driver_version(self) -> str | None:
        """The driver's version, such as "570.124.06"."""
        return text_of(self.optional(self.opened().nvmlSystemGetDriverVersion))

    def devices(self) -> list[tuple[int, str | None]]:
        """NVML's index and the UUID of every GPU; the UUID is None where the GPU is lost.

        Raises NvmlFailed where they can't be counted.
        """
        count = self.required("device count", self.opened().nvmlDeviceGetCount)
        return [(index, self._identify(index)[0]) for index in range(count)]

    def read(self, index: int) -> DeviceReading:
        """One reading of the GPU with NVML index `index`.

        A lost GPU gives `lost=True` and None for all figures. Raises NvmlFailed where neither the
        GPU nor its memory can be asked for at all (no such index, NVML itself gone).
        """
        try:
            return self._read(index)
        except DeviceGone:
            uuid, name = self._known.get(index, (None, None))
            return DeviceReading(
                index=index,
                uuid=uuid,
                name=name,
                total_bytes=None,
                used_bytes=None,
                free_bytes=None,
                reserved_bytes=None,
                memory_api=None,
                utilization_percent=None,
                temperature_celsius=None,
                power_watts=None,
                lost=True,
                processes=None,
            )

    def compute_capability(self, index: int) -> float | None:
        """CUDA compute capability, such as 8.9 or 9.0; None where unknown."""
        api = self.opened()
        try:
            found = self.optional(api.nvmlDeviceGetCudaComputeCapability, self.handle(index))
        except DeviceGone:
            return None
        return None if found is None else float(f"{found[0]}.{found[1]}")

    def accounting_peak(self, index: int, pid: int) -> int | None:
        """The most bytes that `pid` ever held on this GPU, kept by the driver after its exit.

        None where accounting mode is off, or the driver does not know the process or the figure.
        """
        api = self.opened()
        try:
            handle = self.handle(index)
            mode = self.optional(api.nvmlDeviceGetAccountingMode, handle)
            if mode != api.NVML_FEATURE_ENABLED:
                return None
            stats = self.optional(api.nvmlDeviceGetAccountingStats, handle, pid)
        except DeviceGone:
            return None
        peak = None if stats is None else stats.maxMemoryUsage
        return None if peak is None else int(peak)

    def memory_limit_bytes(self, index: int, cgroup: Path) -> int | None:
        """The driver's hard limit on this GPU for a cgroup, read back; bytes.

        None where there is none, or it can't be told: an older driver or nvidia-ml-py, cgroup v1,
        MIG. `cgroup` is a folder below /sys/fs/cgroup, of the container itself: see
        `unified_cgroup`. The limit belongs to the cgroup and not to the caller, so the host reads
        it for a container, and reading takes no privilege. A cgroup without dmem files of its own
        answers with its nearest ancestor's limit, which then binds it too.

        Sources: docs.nvidia.com/deploy/nvml-api, nvmlGetMemoryLimits_v1_t ("No limit is set when
        softLimit is 0 and hardLimit is NVML_DEVICE_MEMORY_LIMIT_MAX"; nameSpace is the "full path
        to sysfs cgroup file name"); docs.nvidia.com/deploy/mps/mpsv3-memory-partitioning.html
        ("Setting limits is privileged; reading them is not", cgroup v2, "MIG handles are
        rejected", inheritance on reads). Some drivers answer NOT_FOUND or NOT_SUPPORTED for a
        cgroup that has no limit: both are None here, since neither proves one.
        """
        api = self.opened()
        ask = getattr(api, "nvmlDeviceGetMemoryLimits_v1", None)
        structure = getattr(api, "c_nvmlGetMemoryLimits_v1_t", None)
        if ask is None or structure is None:
            return None  # nvidia-ml-py before 13.615
        limits = structure()
        limits.nameSpace = os.fsencode(cgroup)
        try:
            self.ask(ask, self.handle(index), limits)
        except (DeviceGone, NvmlFailed, api.NVMLError):
            return None
        hard = int(limits.hardLimit)
        # 0 is what the structure began with; a limit of nothing would be no use to anybody
        return None if hard in (0, NO_MEMORY_LIMIT) else hard

    def limit_in_force(self, indices: Iterable[int], cgroup: Path) -> int | None:
        """The limit that holds a container on each of its GPUs: the largest of theirs, in bytes.

        None unless every GPU has one. A budget counts as enforced by the driver where this is not
        above it.
        """
        limits = [self.memory_limit_bytes(index, cgroup) for index in indices]
        known = [limit for limit in limits if limit is not None]
        return max(known) if limits and len(known) == len(limits) else None

    # How questions are asked: here and in guard.health ----------------------------------------

    def opened(self) -> ModuleType:
        """The pynvml module. Raises NvmlFailed where NVML is not open."""
        if self._api is None:
            raise NvmlFailed("NVML is not open")
        return self._api

    def ask(self, question: Callable[..., _T], *arguments: object) -> _T:
        """The answer. Raises DeviceGone, NVMLError, or NVMLError_FunctionNotFound."""
        api = self.opened()
        try:
            return question(*arguments)
        except api.NVMLLibraryMismatchError as error:
            # pynvml says this where an older driver lacks a symbol: for one question among many
            # that is "not supported".
            raise api.NVMLError(api.NVML_ERROR_FUNCTION_NOT_FOUND) from error
        except api.NVMLError as error:
            if error.value in (api.NVML_ERROR_GPU_IS_LOST, api.NVML_ERROR_RESET_REQUIRED):
                raise DeviceGone from error
            raise

    def optional(self, question: Callable[..., _T], *arguments: object) -> _T | None:
        """The answer, or None where this driver or this GPU has none."""
        try:
            return self.ask(question, *arguments)
        except self.opened().NVMLError:
            return None

    def required(self, what: str, question: Callable[..., _T], *arguments: object) -> _T:
        """The answer, or NvmlFailed."""
        try:
            return self.ask(question, *arguments)
        except self.opened().NVMLError as error:
            raise NvmlFailed(f"{what}: {error}") from error

    def handle(self, index: int) -> object:
        """pynvml's handle of a GPU. Raises DeviceGone, NvmlFailed."""
        # Asked anew each time (about a microsecond): a kept handle outlives a GPU that was reset.
        return self.required(f"GPU {index}", self.opened().nvmlDeviceGetHandleByIndex, index)

    def _identify(self, index: int) -> tuple[str | None, str | None]:
        """UUID and name, remembered so that a GPU that is lost later can still be named."""
        if index not in self._known:
            api = self.opened()
            try:
                handle = self.handle(index)
                uuid = text_of(self.optional(api.nvmlDeviceGetUUID, handle))
                name = text_of(self.optional(api.nvmlDeviceGetName, handle))
            except (DeviceGone, NvmlFailed):
                return None, None
            self._known[index] = (uuid, name)
        return self._known[index]

    def _read(self, index: int) -> DeviceReading:
        api = self.opened()
        handle = self.handle(index)
        uuid, name = self._identify(index)
        memory, memory_api = self._memory(index, handle)
        rates = self.optional(api.nvmlDeviceGetUtilizationRates, handle)
        celsius = self.optional(api.nvmlDeviceGetTemperature, handle, api.NVML_TEMPERATURE_GPU)
        milliwatts = self.optional(api.nvmlDeviceGetPowerUsage, handle)
        return DeviceReading(
            index=index,
            uuid=uuid,
            name=name,
            total_bytes=None if memory is None else int(memory.total),
            used_bytes=None if memory is None else int(memory.used),
            free_bytes=None if memory is None else int(memory.free),
            reserved_bytes=int(memory.reserved) if memory is not None and memory_api == 2 else None,
            memory_api=memory_api,
            utilization_percent=None if rates is None else int(rates.gpu),
            temperature_celsius=None if celsius is None else int(celsius),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            lost=False,
            processes=self._processes(handle),
        )

    def _memory(self, index: int, handle: object) -> tuple[_Memory | None, Literal[1, 2] | None]:
        """Memory by API 2 (driver's share apart) or else 1; (None, None) where not supported."""
        api = self.opened()
        found = self.optional(api.nvmlDeviceGetMemoryInfo, handle, api.nvmlMemory_v2)
        if found is not None:
            return found, 2
        try:
            return self.ask(api.nvmlDeviceGetMemoryInfo, handle), 1
        except api.NVMLError as error:
            # Parts with unified memory answer this; the system's RAM is not the GPU's memory.
            if error.value in (api.NVML_ERROR_NOT_SUPPORTED, api.NVML_ERROR_FUNCTION_NOT_FOUND):
                return None, None
            raise NvmlFailed(f"GPU {index} memory: {error}") from error

    def _processes(self, handle: object) -> tuple[DeviceProcess, ...] | None:
        """The processes on a GPU: the compute, graphics and MPS lists, each pid once.

        The lists overlap and repeat the same figure, so the larger one is kept and nothing is
        added. None where the compute list, without which nothing can be said, can't be read.
        """
        api = self.opened()
        compute = self._process_list(
            handle,
            api.nvmlDeviceGetComputeRunningProcesses_v3,
            api.nvmlDeviceGetComputeRunningProcesses_v2,
        )
        if compute is None:
            return None
        graphics = self._process_list(
            handle,
            api.nvmlDeviceGetGraphicsRunningProcesses_v3,
            api.nvmlDeviceGetGraphicsRunningProcesses_v2,
        )
        mps = self._process_list(
            handle,
            api.nvmlDeviceGetMPSComputeRunningProcesses_v3,
            api.nvmlDeviceGetMPSComputeRunningProcesses_v2,
        )
        held: dict[int, int | None] = {}
        for entry in (*compute, *(graphics or ()), *(mps or ())):
            pid = int(entry.pid)
            used = None if entry.usedGpuMemory is None else int(entry.usedGpuMemory)
            earlier = held.get(pid)
            if earlier is None or (used is not None and used > earlier):
                held[pid] = used
        return tuple(DeviceProcess(pid, held[pid]) for pid in sorted(held))

    def _process_list(
        self, handle: object, *versions: Callable[[object], list[_Process]]
    ) -> list[_Process] | None:
        """The list by the newest version that this driver has, or None."""
        api = self.opened()
        for question in versions:
            for _ in range(PROCESS_LIST_ATTEMPTS):
                try:
                    return self.ask(question, handle)
                except api.NVMLError as error:
                    if error.value == api.NVML_ERROR_INSUFFICIENT_SIZE:
                        continue
                    if error.value == api.NVML_ERROR_FUNCTION_NOT_FOUND:
                        break  # an older driver: the older version
                    return None
        return None


def unified_cgroup(cgroup_text: str, mount: Path = CGROUPS) -> Path | None:
    """The cgroup that a driver's limit is kept under, from the text of a /proc/PID/cgroup.

    None under cgroup v1 or a hybrid of both, where the driver keeps no limits (and NVIDIA's hook
    fails the container's start: nvidia-container-toolkit, apply-cuda-memory-limits.go, "only
    supported in cgroup v2"), and for a process outside of what this one sees. Of the container's
    own process, never of a parent: Docker's new leaf has a limit of its own.
    """
    lines = cgroup_text.splitlines()
    if len(lines) != 1 or not lines[0].startswith("0::/"):
        return None
    path = lines[0].removeprefix("0::/")
    if path.endswith(" (deleted)") or ".." in path.split("/"):
        return None
    return mount / path


def text_of(value: str | bytes | None) -> str | None:
    """pynvml has given bytes in some versions and str in others."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
