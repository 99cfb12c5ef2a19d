"""`runner fit JOB`: find the fastest settings that fit a job into a memory budget.

Starts nothing, downloads no weights. Imports no torch.
"""

from __future__ import annotations

import shlex

from runner.common.errors import RefusedError
from runner.common.output import Output, colour, field
from runner.common.units import format_bytes, parse_bytes
from runner.common.yaml_text import to_yaml
from runner.launch.fit import Fitted, fit
from runner.launch.fit import apply as write_fitted
from runner.launch.jobs import load_job
from runner.launch.vram import device_line
from runner.report.ladder import ladder_lines


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
    found = fit(loaded, out, budget=budget, gpu_total=gpu_total)
    plan, facts, record = found.plan, found.facts, found.record
    fitted, limit, overrides = found.fits, found.limit_bytes, found.overrides
    lines = [
        field("job", f"{loaded.name}: {plan.model.id}, {plan.method}"),
        field("device", found.assumed or device_line(plan, facts)),
        field(
            "budget",
            format_bytes(limit)
            + (f" of {format_bytes(parse_bytes(gpu_total))}" if gpu_total else ""),
        ),
        *ladder_lines(record, colour=colour()),
        "",
    ]
    if not fitted:
        lines += _not_fitted(found)
    else:
        command = ["runner", "train", name, *(_set(key, overrides[key]) for key in overrides)]
        lines.append(field("train", shlex.join(command)))
    written = write_fitted(loaded, overrides, out) if apply and fitted else None
    if written is not None:
        lines.append(field("written", f"{written}"))
    out.result(
        {"job": loaded.name, "fits": fitted, **record, "overrides": overrides, "written": written},
        lines,
    )
    return 0 if fitted else RefusedError("").exit_code


def _set(name: str, value: object) -> str:
    return f"--set={name}={value if isinstance(value, str) else to_yaml(value)}"


def _not_fitted(found: Fitted) -> list[str]:
    record, allow = found.record, found.job.fit.allow
    lines = [field("NO PLAN", "that keeps the result, or that fit.allow permits, fits this budget")]
    would = list(
        dict.fromkeys(name for part in record["trainings"] for name in part["allowed_would_fit"])
    )
    if would:
        ways = " or ".join(to_yaml([*allow, one]) for one in would)
        lines.append(field("would fit", f"fit.allow: {ways}, which changes the result"))
    return lines
