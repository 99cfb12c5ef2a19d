"""`runner jobs`, `show` and `render`: the commands that read job files and start nothing.

Imports no torch.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from runner.common.errors import RunnerError
from runner.common.output import Output, field, table
from runner.common.units import GIB, KIB, MIB
from runner.common.yaml_text import to_yaml
from runner.jobs.load import LoadedJob, list_jobs
from runner.launch import jobs
from runner.launch.jobs import describe_job, load_job

_MAPPINGS = ("data.labels", "data.placeholders", "container.ulimits", "environment")
_SIZES = ("budget.gpu_memory", "budget.host_memory", "container.memory", "container.shm_size")


def list_all(*, as_json: bool) -> None:
    """Name, model and description of each job; a broken file is listed with what is wrong."""
    records: list[dict[str, Any]] = []
    for name, path in list_jobs().items():
        try:
            job = load_job(str(path)).job
            records.append({"job": name, "file": str(path), **describe_job(job)})
        except RunnerError as error:
            records.append({"job": name, "file": str(path), "error": error.message})
    rows = [
        [
            r["job"],
            r.get("model", "-"),
            r.get("method", "-"),
            r.get("description") or f"BROKEN: {r.get('error')}",
        ]
        for r in records
    ]
    Output(as_json=as_json).result(records, table(["JOB", "MODEL", "METHOD", "DESCRIPTION"], rows))


def show_job(name: str, sets: list[str], *, as_json: bool) -> None:
    """Every field with its value and source, as YAML that is a job file again."""
    loaded = load_job(name, sets)
    record = loaded.job.shown_values()
    lines = [f"# {loaded.name}: {loaded.path}"]
    _show(loaded, loaded.job, "", 0, lines)
    Output(as_json=as_json).result(
        {
            "job": loaded.name,
            "file": str(loaded.path),
            "values": record,
            "sources": _all_sources(loaded, record),
        },
        lines,
    )


def _source(loaded: LoadedJob, dotted: str) -> str:
    """Where a value comes from: its own entry, that of an entry of it, or the default."""
    inner = (name for name in loaded.sources if name.startswith(dotted + "."))
    return loaded.sources.get(dotted) or loaded.sources.get(next(inner, ""), "default")


def _all_sources(loaded: LoadedJob, record: dict[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in record.items():
        dotted = prefix + key
        if isinstance(value, dict) and value and dotted not in _MAPPINGS:
            out |= _all_sources(loaded, value, dotted + ".")
        else:
            out[dotted] = _source(loaded, dotted)
    return out


def _show(loaded: LoadedJob, model: BaseModel, prefix: str, depth: int, lines: list[str]) -> None:
    for name in type(model).model_fields:
        value, dotted, indent = getattr(model, name), prefix + name, "  " * depth
        if isinstance(value, BaseModel):
            lines.append(f"{indent}{name}:")
            _show(loaded, value, dotted + ".", depth + 1, lines)
            continue
        if isinstance(value, list):
            value = [
                entry.model_dump(mode="json", exclude_unset=True)
                if isinstance(entry, BaseModel)
                else entry
                for entry in value
            ]
        shown = _exact_size(value) if dotted in _SIZES and value is not None else to_yaml(value)
        lines.append(f"{f'{indent}{name}: {shown}':<58}  # {_source(loaded, dotted)}")


def _exact_size(size: int) -> str:
    """A size in the largest unit that says it exactly."""
    units = (("GiB", GIB), ("MiB", MIB), ("KiB", KIB))
    return next((f"{size // each}{unit}" for unit, each in units if size % each == 0), f"{size}B")


def render_job(
    job: str,
    sets: list[str],
    *,
    max_steps: int | None,
    smoke: bool,
    name: str,
    as_json: bool,
) -> None:
    """Print one rendered file; notes on what the machine lacks go to stderr."""
    rendered = jobs.render_job(load_job(job, sets), max_steps=max_steps, smoke=smoke)
    text = rendered.text_of(name)
    out = Output(as_json=as_json)
    for line in rendered.substitutions:
        out.say(field("note", f"substituted: {line}"))
    for line in rendered.absent:
        out.say(field("note", line))
    record = {"plan_hash": rendered.plan_hash, "files": rendered.files}
    out.result(record, [text.rstrip("\n")])
