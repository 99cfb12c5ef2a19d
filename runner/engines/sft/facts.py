"""The facts of the host that a plan of the native engine depends on, gathered once, at the edge.

Reads files and package metadata. Imports no torch.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runner.engines.sft.job import SftJob, resolved_phases, sft_job
from runner.jobs.load import LoadedJob
from runner.plans.facts import HostFacts, gather_host
from runner.plans.sources import DataSource, ModelSource, find_data, find_model, missing_data

_PHASE_FIELD = re.compile(r"^phases\.\d+\.(data\..+)$")


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


def row_fields(job: SftJob) -> dict[str, str]:
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


def hub_parts(job: SftJob) -> dict[str, tuple[str | None, str]]:
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
