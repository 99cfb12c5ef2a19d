"""The facts of the host that a plan depends on, gathered once, at the edge.

Reads files and package metadata, and asks NVML (through runner.machine.nvml) where its library is
there. Imports no torch: which build of it is installed stands in its metadata.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.engines.sft.job import Job, resolved_phases
from runner.jobs.base import JobBase
from runner.jobs.load import LoadedJob, sft_job
from runner.machine.cores import usable_cores
from runner.machine.visible_devices import ORDER, VARIABLE, order_note, visible
from runner.plans.placement import HERE, Place, settle_place
from runner.plans.sources import (
    DataSource,
    ModelSource,
    cache_folder,
    find_data,
    find_model,
    missing_data,
)

if TYPE_CHECKING:
    from runner.machine.leases.turn import Caller

_PHASE_FIELD = re.compile(r"^phases\.\d+\.(data\..+)$")


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
    place: Place = HERE
    """Where the launch script will run."""


@dataclass(frozen=True, kw_only=True)
class Facts(HostFacts):
    """What decides a plan of the native engine."""

    model: ModelSource
    rows: Mapping[str, DataSource]
    """Dotted field (data.train, data.mix.sources.0.rows, phases.1.data.train) -> its rows."""
    vision: ModelSource | None = None
    model_type: str | None = None
    """transformers' name of the architecture, from the weights' config.json, where it is here."""
    model_dtype: str | None = None
    """The number format that the weights were published in, from the same file."""
    template_date: str | None = None
    """Today, where the model's chat template writes the date or can't be looked at."""
    quantizes: str | None = None
    """Why bitsandbytes can't be used where it runs, in a few words; None where it can."""


def gather_host(job: JobBase) -> HostFacts:
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


def gather(loaded: LoadedJob) -> Facts:
    """The facts for one job of the native engine on this host.

    Raises:
        SpecError: the job's model or data can't be what its text says.
        RefusedError: launch.on is docker, and the job can't run there.
    """
    job = sft_job(loaded)
    host = gather_host(job)

    def where(field: str) -> str:
        return loaded.sources.get(field, str(loaded.path))

    def beside(field: str) -> Path | None:
        return None if field in loaded.overridden else loaded.path.parent

    parts = hub_parts(job)
    # each file is read once
    hashed: dict[tuple[str, Path | None, tuple[str | None, str]], DataSource] = {}

    def rows(field: str, text: str) -> DataSource:
        own = said_by(loaded, field)
        name, split = parts[field]
        key = (text, beside(own), (name, split))
        if key not in hashed:
            hashed[key] = find_data(
                text, field=own, beside=key[1], where=where(own), name=name, split=split
            )
        return hashed[key]

    model = find_model(job.model, beside=beside("model"), where=where("model"))
    vision = None
    if job.vision is not None:
        field = "vision.model"
        vision = find_model(job.vision.model, beside=beside(field), where=where(field), field=field)
    said = _config(model.folder)
    return Facts(
        **{field.name: getattr(host, field.name) for field in fields(host)},
        model=model,
        rows={field: rows(field, text) for field, text in row_fields(job).items()},
        vision=vision,
        model_type=said.get("model_type"),
        model_dtype=said.get("dtype") or said.get("torch_dtype"),
        template_date=template_date(model.folder),
        quantizes=None
        if host.place.version("bitsandbytes")
        else f"bitsandbytes is not installed {host.place.short}",
    )


def row_fields(job: Job) -> dict[str, str]:
    """Dotted field -> text of every field that names rows, each phase's own under its prefix."""
    fields: dict[str, str] = {}
    for phase in resolved_phases(job):
        data, prefix = phase.data, f"{phase.field}data."
        named = {
            "train": data.train,
            "eval": data.eval,
            "test": data.test,
            "questions": data.questions,
            "sample": data.sample,
        }
        for index, source in enumerate(data.mix.sources if data.mix else []):
            named[f"mix.sources.{index}.rows"] = source.rows
            named[f"mix.sources.{index}.sample"] = source.sample
        fields |= {prefix + name: text for name, text in named.items() if text is not None}
    return fields


def hub_parts(job: Job) -> dict[str, tuple[str | None, str]]:
    """Dotted field of row_fields -> configuration and split, where its rows are on a hub.

    data.hub.name belongs to data.train's data set: sources that are mixed in take their default.
    """
    parts: dict[str, tuple[str | None, str]] = {}
    splits = {"data.eval": "eval_split", "data.test": "test_split"}
    for phase in resolved_phases(job):
        hub = phase.data.hub
        for field in row_fields(job):
            if field.startswith(f"{phase.field}data."):
                own = field.removeprefix(phase.field)
                name = None if own.startswith("data.mix.") else hub.name
                parts[field] = (name, getattr(hub, splits.get(own, "split")))
    return parts


def said_by(loaded: LoadedJob, field: str) -> str:
    """The field that a phase's field has its value from: the job's own where it says no other."""
    match = _PHASE_FIELD.match(field)
    return match[1] if match and field not in loaded.sources else field


def require_data(loaded: LoadedJob, facts: Facts) -> None:
    """Refuse (SpecError) a job whose own rows are not on this machine."""
    for field, text in row_fields(sft_job(loaded)).items():
        source = facts.rows[field]
        if field.endswith(".sample") or source.kind != "file" or source.present:
            continue
        own = said_by(loaded, field)
        where = loaded.sources.get(own, str(loaded.path))
        raise missing_data(source, text, field=own, where=where)


def _config(folder: Path | None) -> dict[str, Any]:
    """What config.json in a model folder says; nothing where there is none or it is no object."""
    try:
        record = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def template_date(folder: Path | None) -> str | None:
    """Today (ISO), where a chat template in `folder` asks for it, or where there is no folder yet.

    Templates ask by strftime_now, which transformers gives them.
    """
    if folder is not None and folder.is_dir():
        names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
        files = [folder / name for name in names]
        files += (folder / "additional_chat_templates").glob("*.jinja")
        if not any(_mentions(path, b"strftime_now") for path in files):
            return None
    return today().isoformat()


def today() -> datetime.date:
    """The local day, as a chat template would tell it."""
    return datetime.date.today()


def _mentions(path: Path, word: bytes) -> bool:
    try:
        return word in path.read_bytes()
    except OSError:
        return False


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
