"""`runner train`: start a job, follow it to its outcome, and print that."""

from __future__ import annotations

import shlex
from pathlib import Path

from runner.common.output import Output, field
from runner.launch.follow import follow
from runner.launch.jobs import load_job
from runner.launch.resume import Choice
from runner.launch.start import leave, said_by_supervisor, start_supervisor
from runner.launch.train import ReadyRun, TrainOptions, prepare
from runner.report.outcome import ended_lines
from runner.runs.records import read_outcome


def train_job(
    name: str,
    sets: list[str],
    *,
    max_steps: int | None,
    runs: Path | None,
    choice: Choice | None,
    dry_run: bool,
    wait: bool,
    detach: bool,
    as_json: bool,
    unsafe: bool = False,
) -> int:
    """The run's exit code. With `detach` 0 as soon as it has a supervisor, or why it has none."""
    out = Output(as_json=as_json)
    options = TrainOptions(max_steps, runs, choice, dry_run, wait, unsafe)
    ready = prepare(load_job(name, sets), options, out)
    plan, folder = ready.plan, ready.folder
    if dry_run and (command := ready.container_command) is not None:
        out.say(field("command", shlex.join(command)))
    if ready.is_only_shown:
        ready.discard()  # what a script would do can't be tried without doing it
        out.result({"started": False, "plan_hash": plan.hash}, ["dry run: nothing was started"])
        return 0
    supervisor = start_supervisor(folder, plan, resume=ready.resumes, wait=wait)
    if detach:
        return leave(folder, supervisor, out, resumed=ready.resumes)
    return _ended(ready, follow(folder, plan, supervisor, out), out)


def _ended(ready: ReadyRun, code: int, out: Output) -> int:
    """Print how the run ended; its exit code."""
    folder = ready.folder
    record = read_outcome(folder) or {}
    if code and not record:
        for line in said_by_supervisor(folder):
            out.say(line)
    out.result(
        {"run": folder.name, "folder": str(folder.path), "resumed": ready.resumes, **record},
        ended_lines(folder, record),
    )
    return code
