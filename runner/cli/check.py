"""`runner check JOB`: check fields, data, masks, model and machine, without training.

The parts that need a tokenizer or torch run in a process of their own.
"""

from __future__ import annotations

import shlex

from runner.common import terminal
from runner.common.output import Output, colour, field
from runner.engines.load import load_job
from runner.engines.registry import engine_of
from runner.engines.render import summary
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import EngineRefused
from runner.launch.calibrate import corrected_survey, memory_line
from runner.launch.gpus import preflight, with_free_cards
from runner.launch.plan import planned
from runner.launch.preflight import place_line, require_place
from runner.launch.risks import all_warnings
from runner.launch.survey import SampleRow, require_disk, survey, survey_lines
from runner.launch.vram import over_budget, require_fits
from runner.plans.base import Plan
from runner.plans.facts import HostFacts
from runner.runs.find import default_root

_GREEN, _PLAIN = terminal.ink("30;42"), terminal.ink("0")


def check_job(name: str, sets: list[str], *, samples: int, as_json: bool) -> int:
    """0 where the job can be trained here, 2 for a wrong job or data, 3 for a lacking machine."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    command = ["runner", "train", name, *(part for text in sets for part in ("--set", text))]
    any_plan, facts = planned(loaded, "train", None, out)
    known = engine_of(any_plan).predicted(any_plan, facts)
    if known is None:
        return _check_other(loaded, any_plan, facts, shlex.join(command), out)
    plan, own_facts = known
    lines = [
        field("job", f"{loaded.name}: {loaded.path} is valid"),
        field("plan", plan.short_hash),
        *(field(label, text) for label, text in summary(plan)),
        field("place", facts.place.line),
        preflight(with_free_cards(plan, wait=True)),
    ]
    try:
        surveyed = survey(plan, out, samples)
    except EngineRefused as error:
        terminal.say("\n".join(error.lines()))
        if as_json:
            record = {"ok": False, "job": loaded.name, "exit_code": error.exit_code}
            out.result({**record, "error": error.lines()}, [])
        return error.exit_code
    require_disk(
        default_root(), int(surveyed["disk_bytes"]), what="this run's checkpoints and result"
    )
    lines += [field("SUBSTITUTE", text) for text in plan.substitutions]
    warnings = [*plan.warnings, *surveyed["warnings"], *all_warnings(loaded, plan)]
    prediction = corrected_survey(surveyed, plan, own_facts)
    over = over_budget(prediction, plan) if prediction is not None else None
    warnings += [over] if over else []
    lines += [field("WARNING", text) for text in warnings]
    lines += [field("note", text) for text in surveyed["notes"]]
    if prediction is not None:
        require_fits(prediction, plan, own_facts)
        lines.append(field("memory", memory_line(prediction, plan)))
    lines += survey_lines(surveyed)
    for part in surveyed["trainings"]:
        head = f"{part['phase']}: " if part["phase"] else ""
        lines.append(field("rows", head + _histogram(part["data"]["train"]["lengths"])))
        for sample in part["data"]["train"]["samples"]:
            lines += ["", *sample_lines(sample)]
    starts = f"{shlex.join(command)} would start"
    lost = field("starts", f"{starts}, but is predicted to be ended over its budget")
    lines += ["", lost if over else field("ok", starts)]
    out.result(
        {
            "ok": True,
            "job": loaded.name,
            "plan_hash": plan.hash,
            "exit_code": 0,
            "substitutions": plan.substitutions,
            **surveyed,
            "memory": prediction and prediction.model_dump(mode="json"),
            "warnings": warnings,
        },
        lines,
    )
    return 0


def _check_other(loaded: LoadedJob, plan: Plan, facts: HostFacts, command: str, out: Output) -> int:
    """The check of a job whose rows and weights are its engine's own affair: files and machine."""
    looked = engine_of(plan).look_before(loaded, plan, out.say, images=True)
    require_place(plan, facts)
    warnings = [*plan.warnings, *looked.warnings, *all_warnings(loaded, plan)]
    lines = [
        field("job", f"{loaded.name}: {loaded.path} is valid"),
        field("plan", plan.short_hash),
        *(field(label, text) for label, text in summary(plan)),
        field("place", place_line(plan, facts)),
        preflight(with_free_cards(plan, wait=True)),
        *(field("preflight", text) for text in looked.lines),
        *(field("SUBSTITUTE", text) for text in plan.substitutions),
        *(field("WARNING", text) for text in warnings),
        "",
        field("ok", f"{command} would start"),
    ]
    record = {"ok": True, "job": loaded.name, "plan_hash": plan.hash, "exit_code": 0}
    told = {"substitutions": plan.substitutions, "warnings": warnings}
    found = {} if looked.record is None else {"preflight": looked.record}
    out.result({**record, **told, **found}, lines)
    return 0


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
