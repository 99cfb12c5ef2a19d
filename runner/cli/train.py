"""`runner train`: resolve, refuse what can't run, start the supervisor, follow it to the verdict.

Imports no torch; what needs it runs in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import durable
from runner.cli.follow import follow
from runner.cli.output import Output, field
from runner.cli.preflight import fetch_missing, make_stand_in, require_training_stack
from runner.cli.report import verdict_lines
from runner.cli.resume import Choice, choose
from runner.cli.survey import require_disk, survey, survey_lines
from runner.facts import Facts, gather, require_data
from runner.folder import RunFolder, create, default_root
from runner.jobfile import LoadedJob, load_job
from runner.plan import Plan
from runner.render import budget_line, method_line, model_line, render, steps_line
from runner.resolve import make_plan


def train_job(
    name: str,
    sets: list[str],
    *,
    max_steps: int | None,
    runs: Path | None,
    choice: Choice | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """The run's exit code."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    facts = gather(loaded)
    require_data(loaded, facts)
    require_training_stack(loaded.job)
    if fetch_missing(loaded, facts, out):
        facts = gather(loaded)
    plan = make_plan(loaded, facts, "dry_run" if dry_run else "train", max_steps)
    root = runs or default_root()
    folder = None if dry_run else choose(plan, root, choice, out)
    resume = folder is not None
    surveyed = survey(plan, out)
    require_disk(root, int(surveyed["disk_bytes"]), what="its checkpoints and result")
    if folder is None:
        folder = prepare_folder(loaded, plan, runs)
    announce(plan, folder, out, surveyed)
    code = start_and_follow(folder, plan, out, resume=resume)
    record = durable.read_json(folder.termination) or {}
    out.result(
        {"run": folder.name, "folder": str(folder.path), "resumed": resume, **record},
        verdict_lines(folder, record),
    )
    return code


def prepare_folder(loaded: LoadedJob, plan: Plan, runs: Path | None) -> RunFolder:
    """A new run folder with the rendered files and the source of each value."""
    folder = create(runs or default_root(), plan.job, plan.short_hash, plan.variant, render(plan))
    durable.write_json(
        folder.sources,
        {"schema_version": 1, "job_file": str(loaded.path), "sources": dict(loaded.sources)},
    )
    return folder


def announce(plan: Plan, folder: RunFolder, out: Output, surveyed: Mapping[str, Any]) -> None:
    """The quiet lines before a run starts."""
    out.say(field("plan", f"{plan.short_hash}   {model_line(plan)} · {method_line(plan)}"))
    for text in survey_lines(surveyed):
        out.say(text)
    out.say(field("training", steps_line(plan)))
    out.say(field("memory", budget_line(plan)))
    for line in plan.substitutions:
        out.say(field("SUBSTITUTE", line))
    for line in (*plan.warnings, *surveyed["warnings"]):
        out.say(field("WARNING", line))
    out.say(field("run", _shown(folder.path)))


def start_and_follow(folder: RunFolder, plan: Plan, out: Output, *, resume: bool = False) -> int:
    """Start the supervisor in a session of its own and follow the run; its exit code."""
    with folder.supervisor_log.open("ab") as log:
        supervisor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "runner.supervise",
                str(folder.path),
                *(["--resume"] if resume else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return follow(folder, plan, supervisor, out)


def ready_smoke(
    loaded: LoadedJob, facts: Facts, max_steps: int, runs: Path | None, out: Output
) -> tuple[Plan, RunFolder]:
    """A smoke's plan and folder, its stand-ins made."""
    plan = make_plan(loaded, facts, "smoke", max_steps)
    if plan.rows.train.path is None or not Path(plan.rows.train.path).is_file():
        require_data(loaded, facts)  # neither the job's rows nor samples are here
    make_stand_in(plan, out)
    return plan, prepare_folder(loaded, plan, runs)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
