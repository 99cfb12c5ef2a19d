"""Read a GPU's health: power limit, clocks, ECC, MIG, XID events.

May import the stdlib and this package's readings and nvml. No budget depends on it, so nothing here
raises: what a driver does not report is None.
"""

from __future__ import annotations

import contextlib
from types import ModuleType

from runner.machine.nvml import DeviceGone, Nvml, NvmlFailed, text_of
from runner.machine.readings import DeviceHealth, MigDevice

# nvml.h's nvmlClocksEventReasons, formerly nvmlClocksThrottleReasons: the bits are the same.
CLOCK_LIMITS = {
    0x001: "idle",
    0x002: "clocks set by hand",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal (software)",
    0x040: "thermal (hardware)",
    0x080: "power brake",
    0x100: "display clocks",
}
# What holds the clocks back although there is work to do; "idle" is only its absence.
IDLE = CLOCK_LIMITS[0x001]
_MOST_EVENTS_AT_ONCE = 100


def clock_limits(mask: int) -> tuple[str, ...]:
    """NVML's mask of clocks event reasons in words; a bit that has no name here stays a number."""
    names = [name for bit, name in CLOCK_LIMITS.items() if mask & bit]
    unnamed = mask & ~sum(CLOCK_LIMITS)
    return (*names, f"reason {unnamed:#x}") if unnamed else tuple(names)


def read_health(nvml: Nvml, index: int) -> DeviceHealth:
    """The health of the GPU with NVML index `index`; all None where it is lost or not there."""
    try:
        return _read(nvml, nvml.opened(), nvml.handle(index))
    except (DeviceGone, NvmlFailed):
        return DeviceHealth()


def _read(nvml: Nvml, api: ModuleType, handle: object) -> DeviceHealth:
    milliwatts = nvml.optional(api.nvmlDeviceGetEnforcedPowerLimit, handle)
    mask = nvml.optional(api.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if mask is None:  # before driver 535
        mask = nvml.optional(api.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    errors = [
        nvml.optional(api.nvmlDeviceGetTotalEccErrors, handle, kind, api.NVML_VOLATILE_ECC)
        for kind in (api.NVML_MEMORY_ERROR_TYPE_CORRECTED, api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    ]
    mode = nvml.optional(api.nvmlDeviceGetMigMode, handle)
    in_mig = None if mode is None else mode[0] == api.NVML_DEVICE_MIG_ENABLE
    return DeviceHealth(
        power_limit_watts=None if milliwatts is None else milliwatts / 1000,
        clock_limits=None if mask is None else clock_limits(int(mask)),
        ecc_corrected=None if errors[0] is None else int(errors[0]),
        ecc_uncorrected=None if errors[1] is None else int(errors[1]),
        mig_mode=in_mig,
        mig_devices=_mig_devices(nvml, api, handle) if in_mig else None,
    )


def _mig_devices(nvml: Nvml, api: ModuleType, handle: object) -> tuple[MigDevice, ...] | None:
    """The MIG devices of a GPU; its slots need not be filled in order."""
    slots = nvml.optional(api.nvmlDeviceGetMaxMigDeviceCount, handle)
    if slots is None:
        return None
    found = []
    for slot in range(int(slots)):
        part = nvml.optional(api.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if part is None:
            continue
        memory = nvml.optional(api.nvmlDeviceGetMemoryInfo, part, api.nvmlMemory_v2)
        memory = memory or nvml.optional(api.nvmlDeviceGetMemoryInfo, part)
        found.append(
            MigDevice(
                index=slot,
                uuid=text_of(nvml.optional(api.nvmlDeviceGetUUID, part)),
                name=text_of(nvml.optional(api.nvmlDeviceGetName, part)),
                total_bytes=None if memory is None else int(memory.total),
                used_bytes=None if memory is None else int(memory.used),
            )
        )
    return tuple(found)


class XidWatch:
    """XID events (the driver's numbers for what went wrong on a GPU) since this watch began.

    The driver tells them to whoever waits at the time; what was before can't be asked for.
    """

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._set: object = None
        self._seen: dict[int, list[int]] = {}

    def __enter__(self) -> XidWatch:
        """Begin to listen, on the GPUs that allow it."""
        nvml = self._nvml
        with contextlib.suppress(NvmlFailed, DeviceGone):
            api = nvml.opened()
            self._set = nvml.optional(api.nvmlEventSetCreate)
            if self._set is not None:
                for index, _ in nvml.devices():
                    self._register(index)
        return self

    def __exit__(self, *_: object) -> None:
        if self._set is not None:
            with contextlib.suppress(NvmlFailed, DeviceGone):
                self._nvml.optional(self._nvml.opened().nvmlEventSetFree, self._set)
            self._set = None

    def _register(self, index: int) -> None:
        api = self._nvml.opened()
        try:
            self._nvml.ask(
                api.nvmlDeviceRegisterEvents,
                self._nvml.handle(index),
                api.nvmlEventTypeXidCriticalError,
                self._set,
            )
        except (api.NVMLError, DeviceGone, NvmlFailed):
            return  # a GPU or driver without events: unknown, not "none"
        self._seen[index] = []

    def _poll(self) -> None:
        """Take what came since the last call; returns at once."""
        if not self._seen:
            return
        nvml = self._nvml
        with contextlib.suppress(NvmlFailed, DeviceGone):
            api = nvml.opened()
            for _ in range(_MOST_EVENTS_AT_ONCE):
                event = nvml.optional(api.nvmlEventSetWait_v2, self._set, 0)
                if event is None:  # nothing more (NVML says TIMEOUT)
                    return
                index = nvml.optional(api.nvmlDeviceGetIndex, event.device)
                if index in self._seen and event.eventType == api.nvmlEventTypeXidCriticalError:
                    self._seen[index].append(int(event.eventData))

    def seen(self, index: int) -> tuple[int, ...] | None:
        """The XIDs of a GPU until now, as they came; None where its events can't be heard."""
        self._poll()
        found = self._seen.get(index)
        return None if found is None else tuple(found)
