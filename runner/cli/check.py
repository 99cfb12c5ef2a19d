"""`runner check JOB`: check fields, data, masks, model and machine, without training."""

from __future__ import annotations

import shlex

from runner.common import terminal
from runner.common.output import Output, colour, field
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import EngineRefused
from runner.launch.check import CheckedJob, check_job
from runner.launch.jobs import load_job
from runner.launch.survey import SampleRow, survey_lines

_GREEN, _PLAIN = terminal.ink("30;42"), terminal.ink("0")


def print_check(name: str, sets: list[str], *, samples: int, as_json: bool) -> int:
    """0 where the job can be trained here, 2 for a wrong job or data, 3 for a lacking machine."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    try:
        found = check_job(loaded, out, samples=samples)
    except EngineRefused as error:
        terminal.say("\n".join(error.lines()))
        if as_json:
            record = {"ok": False, "job": loaded.name, "exit_code": error.exit_code}
            out.result({**record, "error": error.lines()}, [])
        return error.exit_code
    command = ["runner", "train", name, *(part for text in sets for part in ("--set", text))]
    lines = [*_plan_lines(loaded, found), *_found_lines(found), "", _last_line(found, command)]
    out.result(found.to_record(loaded.name), lines)
    return 0


def _plan_lines(loaded: LoadedJob, found: CheckedJob) -> list[str]:
    return [
        field("job", f"{loaded.name}: {loaded.path} is valid"),
        field("plan", found.plan.short_hash),
        *(field(label, text) for label, text in found.summary),
        field("place", found.place),
        found.gpus,
        *(field("preflight", text) for text in found.looked),
        *(field("SUBSTITUTE", text) for text in found.plan.substitutions),
        *(field("WARNING", text) for text in found.warnings),
    ]


def _found_lines(found: CheckedJob) -> list[str]:
    """What was found out of the rows and the model; none where these are the engine's own."""
    surveyed = found.survey
    if surveyed is None:
        return []
    lines = [field("note", text) for text in surveyed["notes"]]
    if found.memory is not None:
        lines.append(field("memory", found.memory))
    lines += survey_lines(surveyed)
    for part in surveyed["trainings"]:
        head = f"{part['phase']}: " if part["phase"] else ""
        lines.append(field("rows", head + _histogram(part["data"]["train"]["lengths"])))
        for sample in part["data"]["train"]["samples"]:
            lines += ["", *sample_lines(sample)]
    return lines


def _last_line(found: CheckedJob, command: list[str]) -> str:
    starts = f"{shlex.join(command)} would start"
    if found.is_over_budget:
        return field("starts", f"{starts}, but is predicted to be ended over its budget")
    return field("ok", starts)


def sample_lines(sample: SampleRow) -> list[str]:
    """A row as the model sees it; what carries loss stands in green, or between ⟦ and ⟧."""
    opening, closing = (_GREEN, _PLAIN) if colour() else ("⟦", "⟧")
    text = "".join(
        f"{opening}{part}{closing}" if trained else f"{part}"
        for part, trained in sample["segments"]
    )
    head = (
        f"sample, line {sample['line']}: {sample['supervised']} of {sample['tokens']} tokens "
        f"trained, shown {'in green' if colour() else 'between ⟦ and ⟧'}"
    )
    return [head, *(f"  | {line}" for line in text.rstrip("\n").split("\n"))]


def _histogram(buckets: list[list[int]]) -> str:
    largest = max((rows for _, _, rows in buckets), default=0) or 1
    bars = "▁▂▃▄▅▆▇█"
    shown = [
        f"{low}-{high} {bars[round(rows / largest * 7)]} {rows}" for low, high, rows in buckets
    ]
    return "by length in tokens: " + ", ".join(shown)
