"""The facts of the host that a plan depends on, gathered once, at the edge.

Reads files and package metadata, and NVML (through runner.machine.nvml) if its library is here.
Imports no torch: the installed build is read from its metadata.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.common.caches import cache_folder
from runner.jobs.base import Job
from runner.machine.cores import usable_cores
from runner.machine.visible_devices import ORDER, VARIABLE, order_note, visible
from runner.plans.placement import HERE, Placement, settle_place

if TYPE_CHECKING:
    from runner.machine.leases.turn import Caller


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML lists it."""

    index: int
    uuid: str
    name: str
    total_bytes: int | None
    compute_capability: float | None
    used_bytes: int | None = None
    """In use when the facts were gathered, by whomever."""


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """What the host is and has, as far as it decides any plan."""

    python: str
    """The interpreter that trains: this one, or the image's."""
    cores: int
    torch_version: str | None
    """Of the interpreter that trains; None where it has none, or that is not known."""
    gpus: tuple[Gpu, ...]
    gpu_absence: str
    """Why `gpus` is empty, in a few words; empty text where it is not."""
    driver_broken: bool = False
    """Whether `gpus` is empty because the driver does not work: not a machine without a GPU."""
    mig_named: bool = False
    """Whether `gpus` is empty because the caller named a MIG instance: runner takes whole GPUs."""
    gpu_notes: tuple[str, ...] = ()
    """What is to be known of how CUDA_VISIBLE_DEVICES was read; warnings of the plan."""
    cache: Path
    """The user's folder for models that runner makes and rows that it prepares."""
    place: Placement = HERE
    """Where the launch script will run."""


def gather_host(job: Job) -> HostFacts:
    """The facts that every plan depends on.

    Raises:
        RefusedError: launch.on is docker, and the job can't run there.
    """
    found = list_gpus()
    place = settle_place(job)
    inside = place.container is not None
    return HostFacts(
        python=place.python if inside else sys.executable,
        cores=usable_cores(),
        torch_version=place.version("torch"),
        gpus=found.gpus,
        gpu_absence=found.absence,
        gpu_notes=found.notes,
        mig_named=found.is_mig,
        driver_broken=found.broken,
        cache=cache_folder(),
        place=place,
    )


def emptiest_first(gpus: Sequence[Gpu]) -> list[Gpu]:
    """By memory in use, the lowest index first where they are alike (to 64 MiB)."""
    return sorted(gpus, key=lambda gpu: ((gpu.used_bytes or 0) >> 26, gpu.index))


@dataclass(frozen=True)
class Found:
    """The GPUs that NVML lists and CUDA_VISIBLE_DEVICES leaves."""

    gpus: tuple[Gpu, ...] = ()
    absence: str = ""
    """Why there are none."""
    broken: bool = False
    """Whether that is because the driver is broken."""
    is_mig: bool = False
    """Whether that is because a MIG instance was named."""
    notes: tuple[str, ...] = ()
    """What is to be known of how CUDA_VISIBLE_DEVICES was read, a sentence each."""


def list_gpus() -> Found:
    """The GPUs that a run may have, or why there are none."""
    from runner.machine import nvml as nvml_module

    if not nvml_module.library_present():
        absence = "there is no NVIDIA driver library (libnvidia-ml.so.1) on this machine"
        return Found(absence=absence)
    gpus, lost = [], []
    try:
        with nvml_module.Nvml() as nvml:
            devices = nvml.devices()
            for index, uuid in devices:
                reading = nvml.read(index)
                if reading.lost:
                    lost.append(f"GPU {index}")
                else:
                    name, total = reading.name or "unnamed GPU", reading.total_bytes
                    capability = nvml.compute_capability(index)
                    gpus.append(
                        Gpu(index, uuid or str(index), name, total, capability, reading.used_bytes)
                    )
    except nvml_module.NvmlUnavailable as error:
        return Found(absence=f"NVML can't be used: {error}", broken=error.fatal)
    except nvml_module.NvmlFailed as error:
        return Found(absence=f"NVML does not answer: {error}", broken=True)
    if lost and not gpus:
        return Found(absence=f"the driver has lost {', '.join(lost)}", broken=True)
    if not devices:
        return Found(absence="NVML lists no GPU")
    seen = visible(os.environ.get(VARIABLE), [uuid or str(index) for index, uuid in devices])
    left = {devices[position][0] for position in seen.positions}
    allowed = tuple(gpu for gpu in gpus if gpu.index in left)
    if not allowed:
        gone = f"the driver has lost {', '.join(lost)}, and CUDA_VISIBLE_DEVICES names no other GPU"
        return Found(
            absence=seen.hides_all or gone, is_mig=bool(seen.mig), broken=not seen.hides_all
        )
    named = {gpu.index: gpu.name for gpu in gpus}
    names = [named.get(index, "lost") for index, _ in devices]
    notes = (seen.ignored, order_note(seen, os.environ.get(ORDER), names))
    return Found(allowed, notes=tuple(note for note in notes if note))


def driver_version() -> str | None:
    """The NVIDIA driver's version, or None where NVML can't say."""
    from runner.machine import nvml as nvml_module

    try:
        with nvml_module.Nvml() as nvml:
            return nvml.driver_version()
    except (nvml_module.NvmlUnavailable, nvml_module.NvmlFailed):
        return None


def allowed_by_caller(devices: Sequence[tuple[int, str | None]]) -> Caller:
    """Whether CUDA_VISIBLE_DEVICES leaves a GPU, by its index and UUID: the user meant no others.

    `devices` are all that NVML lists.
    """
    uuids = [uuid or str(index) for index, uuid in devices]
    positions = visible(os.environ.get(VARIABLE), uuids).positions
    left = {devices[position][0] for position in positions}

    def allows(index: int, uuid: str) -> bool:
        return index in left

    return allows
