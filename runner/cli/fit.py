"""`runner fit JOB`: the fastest way to train a job under a memory budget, and the ladder to it.

Nothing is started, no weights are fetched; imports no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import RefusedError, UsageError
from runner.common.output import Output, colour, field
from runner.common.packaged import jobs_folder
from runner.common.units import format_bytes, parse_bytes
from runner.common.yaml_edit import NotEdited, set_fields
from runner.common.yaml_text import shown_path, to_yaml
from runner.engines.load import load_job
from runner.engines.sft.job import sft_job
from runner.engines.sft.memory.ask import correction_of, write_request
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import ask_engine
from runner.launch.vram import device_line, device_name, versions_at, vram_plan
from runner.report.ladder import ladder_lines

TOTAL_SHARE = 0.95
"""Of a card's memory, what a budget may be where none is given: the driver keeps some of it."""


def fit_job(
    name: str,
    sets: list[str],
    *,
    budget: str | None,
    gpu_total: str | None,
    apply: bool,
    as_json: bool,
) -> int:
    """0 where a plan fits, 3 where none does that the job allows."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    job = sft_job(loaded)
    plan, facts, assumed = vram_plan(loaded)
    limit = _limit(budget, gpu_total, plan.budget.limit_bytes)
    found = correction_of(
        device=device_name(plan, facts), method=plan.method, versions=versions_at(facts.place)
    )
    asked = {
        "budget_bytes": limit,
        "allow": job.fit.allow,
        "models": job.fit.models,
        "correction": found and found.model_dump(),
    }
    record = ask_engine(
        plan,
        out,
        lambda folder: write_request(folder, plan, fit=asked),
        failed="no plan could be fitted",
    )
    fitted = all(part["chosen"] is not None for part in record["trainings"])
    overrides: dict[str, Any] = record["overrides"]
    lines = [
        field("job", f"{loaded.name}: {plan.model.id}, {plan.method}"),
        field("device", assumed or device_line(plan, facts)),
        field(
            "budget",
            format_bytes(limit)
            + (f" of {format_bytes(parse_bytes(gpu_total))}" if gpu_total else ""),
        ),
        *ladder_lines(record, colour=colour()),
        "",
    ]
    if not fitted:
        lines += _not_fitted(record, job.fit.allow)
    else:
        kind = "gpu_memory" if plan.launch.device == "cuda" else "host_memory"
        overrides = {**overrides, f"budget.{kind}": _size(limit)}
        command = ["runner", "train", name, *(_set(key, overrides[key]) for key in overrides)]
        lines.append(field("train", shlex.join(command)))
    written = _apply(loaded, overrides, out) if apply and fitted else None
    if written is not None:
        lines.append(field("written", f"{written}"))
    out.result(
        {"job": loaded.name, "fits": fitted, **record, "overrides": overrides, "written": written},
        lines,
    )
    return 0 if fitted else RefusedError("").exit_code


def _limit(budget: str | None, gpu_total: str | None, own: int | None) -> int:
    """The budget in bytes. Raises UsageError where none is given, or it is above the card's."""
    total = _bytes("--gpu-total", gpu_total)
    limit = _bytes("--budget", budget) or own
    if limit is None:
        if total is None:
            raise UsageError(
                "there is no budget to fit", "give --budget 16GiB, or budget.gpu_memory in the job"
            )
        return int(total * TOTAL_SHARE)
    if total is not None and limit > total:
        if budget is None:
            return int(total * TOTAL_SHARE)
        raise UsageError(
            f"--budget {budget} is more than the card has (--gpu-total {gpu_total})",
            f"at most about {format_bytes(int(total * TOTAL_SHARE))}: the driver keeps some of it",
        )
    return limit


def _bytes(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {error}", "for example 16GiB") from None


def _size(limit: int) -> str:
    """Bytes as a job says them, exactly."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if limit % size == 0:
            return f"{limit // size}{unit}"
    return f"{limit}B"


def _set(name: str, value: Any) -> str:
    return f"--set={name}={value if isinstance(value, str) else to_yaml(value)}"


def _not_fitted(record: dict[str, Any], allow: Sequence[str]) -> list[str]:
    lines = [field("NO PLAN", "that keeps the result, or that fit.allow permits, fits this budget")]
    would = list(
        dict.fromkeys(name for part in record["trainings"] for name in part["allowed_would_fit"])
    )
    if would:
        ways = " or ".join(to_yaml([*allow, one]) for one in would)
        lines.append(field("would fit", f"fit.allow: {ways}, which changes the result"))
    return lines


def _apply(loaded: LoadedJob, overrides: dict[str, Any], out: Output) -> str:
    """Set the fields in the job's file; where that is runner's own, in a copy under jobs/.

    Raises RefusedError where the file can't be edited so; it is as it was then.
    """
    source = loaded.path
    target = source
    here = Path.cwd().resolve() in source.parents
    if not here and source.parent == jobs_folder().resolve():
        target = Path("jobs") / source.name
        if target.exists():
            raise RefusedError(
                f"{target} is there already, and {source.name} of runner's own would replace it",
                f"runner fit {target} --apply edits that one",
            )
    text = source.read_text(encoding="utf-8")
    try:
        edited = set_fields(text, overrides)
    except NotEdited as error:
        raise RefusedError(f"{shown_path(source)}: {error}", "set the fields by hand") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(target, edited)
    out.say(field("applied", ", ".join(f"{key}: {overrides[key]}" for key in overrides)))
    return shown_path(target)
