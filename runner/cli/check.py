"""`runner check JOB`: fields, data, masks, model and machine, without training.

The parts that need a tokenizer or torch run in a process of their own.
"""

from __future__ import annotations

import shlex
from typing import Any

from runner.cli.vram import require_fits
from runner.common import terminal
from runner.common.output import Output, colour, field
from runner.engines.load import load_job
from runner.engines.mgm.preflight import require_preflight
from runner.engines.mgm.resolve import require_mgm
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.render import summary
from runner.engines.resolve import make_any_plan
from runner.engines.sft.facts import gather, require_data
from runner.engines.sft.job import Job, sft_job
from runner.engines.sft.resolve import make_plan
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import EngineRefused
from runner.launch.calibrate import corrected_survey, memory_line
from runner.launch.gpus import preflight, with_free_cards
from runner.launch.preflight import fetch_missing, place_line, require_place, require_training_stack
from runner.launch.risks import all_warnings
from runner.launch.survey import require_disk, survey, survey_lines
from runner.runs.folder import default_root

_GREEN, _PLAIN = terminal.ink("30;42"), terminal.ink("0")


def check_job(name: str, sets: list[str], *, samples: int, as_json: bool) -> int:
    """0 where the job can be trained here, 2 for a wrong job or data, 3 for a lacking machine."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    command = ["runner", "train", name, *(part for text in sets for part in ("--set", text))]
    if not isinstance(loaded.job, Job):
        return _check_other(loaded, shlex.join(command), out)
    job = sft_job(loaded)
    facts = gather(loaded)
    require_data(loaded, facts)
    require_training_stack(job, facts.place)
    if fetch_missing(loaded, facts, out):
        facts = gather(loaded)
    plan = make_plan(loaded, facts, "train")
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
    lines += [field("WARNING", text) for text in warnings]
    lines += [field("note", text) for text in surveyed["notes"]]
    prediction = corrected_survey(surveyed, plan, facts)
    if prediction is not None:
        require_fits(prediction, plan, facts)
        lines.append(field("memory", memory_line(prediction, plan)))
    lines += survey_lines(surveyed)
    for part in surveyed["trainings"]:
        head = f"{part['phase']}: " if part["phase"] else ""
        lines.append(field("rows", head + _histogram(part["data"]["train"]["lengths"])))
        for sample in part["data"]["train"]["samples"]:
            lines += ["", *sample_lines(sample)]
    lines += ["", field("ok", f"{shlex.join(command)} would start")]
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


def _check_other(loaded: LoadedJob, command: str, out: Output) -> int:
    """The check of a job whose rows and weights are its engine's own affair: files and machine."""
    plan, facts = make_any_plan(loaded, "train")
    looked = None
    if isinstance(plan, MgmPlan):
        require_mgm(loaded, plan)
        looked = require_preflight(loaded, plan, out, images=True)
    require_place(plan, facts)
    warnings = [*plan.warnings, *(looked.warnings if looked else ()), *all_warnings(loaded, plan)]
    lines = [
        field("job", f"{loaded.name}: {loaded.path} is valid"),
        field("plan", plan.short_hash),
        *(field(label, text) for label, text in summary(plan)),
        field("place", place_line(plan, facts)),
        preflight(with_free_cards(plan, wait=True)),
        *(field("preflight", text) for text in (looked.lines if looked else ())),
        *(field("SUBSTITUTE", text) for text in plan.substitutions),
        *(field("WARNING", text) for text in warnings),
        "",
        field("ok", f"{command} would start"),
    ]
    record = {"ok": True, "job": loaded.name, "plan_hash": plan.hash, "exit_code": 0}
    told = {"substitutions": plan.substitutions, "warnings": warnings}
    found = {"preflight": looked.to_record()} if looked else {}
    out.result({**record, **told, **found}, lines)
    return 0


def sample_lines(sample: dict[str, Any]) -> list[str]:
    """A row as the model sees it; what carries loss stands in green, or between ⟦ and ⟧."""
    opening, closing = (_GREEN, _PLAIN) if colour() else ("⟦", "⟧")
    text = "".join(
        f"{opening}{part}{closing}" if trained else part for part, trained in sample["segments"]
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
