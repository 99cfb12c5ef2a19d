"""The facts of the host that a plan depends on, gathered once, at the edge.

Reads files and package metadata, and asks NVML (through runner.guard.nvml) where its library is
there. Imports no torch: which build of it is installed stands in its metadata.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from runner.jobfile import LoadedJob
from runner.sources import (
    DataSource,
    ModelSource,
    cache_folder,
    find_data,
    find_model,
    missing_data,
)


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


@dataclass(frozen=True)
class Facts:
    """What the host is and has, as far as it decides a plan."""

    python: str
    cores: int
    torch_version: str | None
    gpus: tuple[Gpu, ...]
    gpu_absence: str
    """Why `gpus` is empty, in a few words; empty text where it is not."""
    model: ModelSource
    train: DataSource
    eval: DataSource | None
    sample: DataSource | None
    cache: Path
    """The user's folder for models that runner makes."""


def gather(loaded: LoadedJob) -> Facts:
    """The facts for one job on this host.

    Raises:
        SpecError: the job's model or data can't be what its text says.
    """
    job = loaded.job
    gpus, absence = list_gpus()

    def where(field: str) -> str:
        return loaded.sources.get(field, str(loaded.path))

    def beside(field: str) -> Path | None:
        return None if field in loaded.overridden else loaded.path.parent

    def rows(field: str, text: str | None) -> DataSource | None:
        if text is None:
            return None
        return find_data(text, field=field, beside=beside(field), where=where(field))

    train = rows("data.train", job.data.train)
    assert train is not None  # noqa: S101 - data.train is required
    return Facts(
        python=sys.executable,
        cores=len(os.sched_getaffinity(0)),
        torch_version=package_version("torch"),
        gpus=gpus,
        gpu_absence=absence,
        model=find_model(job.model, beside=beside("model"), where=where("model")),
        train=train,
        eval=rows("data.eval", job.data.eval),
        sample=rows("data.sample", job.data.sample),
        cache=cache_folder(),
    )


def require_data(loaded: LoadedJob, facts: Facts) -> None:
    """Refuse (SpecError) a job whose own rows are not on this machine."""
    for field, text, source in (
        ("data.train", loaded.job.data.train, facts.train),
        ("data.eval", loaded.job.data.eval, facts.eval),
    ):
        if source is not None and text and source.kind == "file" and not source.present:
            where = loaded.sources.get(field, str(loaded.path))
            raise missing_data(source, text, field=field, where=where)


def list_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that NVML lists, or none and why."""
    from runner.guard import nvml as nvml_module

    if not nvml_module.library_present():
        return (), "there is no NVIDIA driver library (libnvidia-ml.so.1) on this machine"
    try:
        with nvml_module.Nvml() as nvml:
            gpus = []
            for index, uuid in nvml.devices():
                reading = nvml.read(index)
                if not reading.lost:
                    name, total = reading.name or "unnamed GPU", reading.total_bytes
                    capability = nvml.compute_capability(index)
                    gpus.append(
                        Gpu(index, uuid or str(index), name, total, capability, reading.used_bytes)
                    )
    except (nvml_module.NvmlUnavailable, nvml_module.NvmlFailed) as error:
        return (), f"NVML can't be used: {error}"
    allowed = _visible(gpus)
    if gpus and not allowed:
        return (), "CUDA_VISIBLE_DEVICES hides every GPU"
    return allowed, "" if gpus else "NVML lists no GPU"


def _visible(gpus: list[Gpu]) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES names, where it is set: the user meant no others."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(gpus)
    names = [name.strip() for name in wanted.split(",")]
    return tuple(
        gpu
        for gpu in gpus
        if any(name and (name == str(gpu.index) or gpu.uuid.startswith(name)) for name in names)
    )


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
