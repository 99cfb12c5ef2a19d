"""Train a job: plan it, refuse what can't run, make or resume its folder, start and follow it.

Imports no torch; what needs it runs in processes of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from runner.common.output import Output, field
from runner.engines.registry import engine_of
from runner.engines.render import render, summary
from runner.engines.sft.survey_record import Survey
from runner.jobs.load import LoadedJob
from runner.launch.calibrate import corrected_survey, keep_prediction, memory_line
from runner.launch.follow import follow
from runner.launch.gpus import preflight, with_free_cards
from runner.launch.plan import planned_smoke, planned_start
from runner.launch.preflight import place_line, require_place
from runner.launch.resume import Choice, choose, plan_for, write_plan
from runner.launch.risks import say_job_warnings, settle_risks
from runner.launch.start import start_supervisor
from runner.launch.survey import require_disk, survey, survey_lines
from runner.launch.vram import require_fits
from runner.plans.base import Plan, Variant
from runner.plans.facts import HostFacts
from runner.provenance.environment import secret_values, without_secrets
from runner.runs.create import create_run
from runner.runs.find import default_root
from runner.runs.folder import RunFolder
from runner.supervisor.execute.docker import docker_argv
from runner.vram.prediction import Prediction


@dataclass(frozen=True)
class TrainOptions:
    """How a job is started, apart from what the job says."""

    max_steps: int | None = None
    runs: Path | None = None
    """Where runs are kept; None is the default place."""
    choice: Choice | None = None
    """resume or fresh; None resumes the latest unfinished run of the same plan, if any."""
    dry_run: bool = False
    wait: bool = False
    """Whether to queue for a GPU that others hold."""
    unsafe: bool = False
    """Whether its container may be one that is not closed."""


@dataclass(frozen=True)
class ReadyRun:
    """A run whose folder is made and whose start has been allowed; nothing runs yet."""

    plan: Plan
    facts: HostFacts
    folder: RunFolder
    resumes: bool = False
    is_only_shown: bool = False
    """Whether it is a dry run of what can't be tried without doing it: not to be started."""

    @property
    def container_command(self) -> list[str] | None:
        """What its container is started by; None where it has none."""
        return None if self.plan.container is None else docker_argv(self.folder, self.plan)

    def discard(self) -> None:
        """Remove the folder of what is only shown, in which nothing ran."""
        assert self.is_only_shown  # noqa: S101 - a run that may be started keeps its folder
        shutil.rmtree(self.folder.path)


def prepare(loaded: LoadedJob, options: TrainOptions, out: Output) -> ReadyRun:
    """Plan a job, look at the machine, and make its run folder or take up an earlier one.

    Raises:
        SpecError, RefusedError, UsageError: what is wrong or lacking, and the way out.
    """
    say_job_warnings(loaded, out)
    variant: Variant = "dry_run" if options.dry_run else "train"
    plan, facts = planned_start(loaded, variant, options.max_steps, out, options.runs)
    settle_risks(loaded, plan, options.runs, out, unsafe=options.unsafe)
    root = options.runs or default_root()
    folder = None if options.dry_run else choose(plan, root, options.choice, out)
    resumes = folder is not None
    if folder is not None:
        plan = plan_for(plan, folder)
    require_place(plan, facts)
    engine = engine_of(plan)
    only_shown = options.dry_run and engine.surveyed(plan) is None
    plan = with_free_cards(plan, wait=options.wait or only_shown)
    surveyed = prediction = None
    if (known := engine.predicted(plan, facts)) is not None:
        native, own_facts = known
        surveyed = survey(native, out)
        require_disk(root, int(surveyed["disk_bytes"]), what="its checkpoints and result")
        prediction = corrected_survey(surveyed, native, own_facts)
        if prediction is not None:
            require_fits(prediction, native, own_facts, recovers=native.on_oom == "recover")
    if folder is None:
        folder = prepare_folder(loaded, plan, options.runs)
        if prediction is not None:
            keep_prediction(folder, prediction)
    else:
        write_plan(plan, folder, out)
    announce(plan, facts, folder, out, surveyed, prediction)
    return ReadyRun(plan, facts, folder, resumes, only_shown)


def prepare_folder(loaded: LoadedJob, plan: Plan, runs: Path | None) -> RunFolder:
    """A new run folder with the rendered files and the source of each value."""
    folder = create_run(
        runs or default_root(), plan.job, plan.short_hash, plan.variant, render(plan)
    )
    secrets = list(loaded.job.container.secrets)  # a run of this machine has no container's
    folder.write_json(
        folder.sources,
        {
            "schema_version": 1,
            "job_file": str(loaded.path),
            "job_sha256": loaded.sha256,
            "command": without_secrets(sys.argv, secret_values(os.environ, secrets)),
            "folder": str(Path.cwd()),
            "secrets": secrets,
            "sources": dict(loaded.sources),
        },
    )
    return folder


def announce(
    plan: Plan,
    facts: HostFacts,
    folder: RunFolder,
    out: Output,
    surveyed: Survey | None,
    prediction: Prediction | None = None,
) -> None:
    """The quiet lines before a run starts."""
    if surveyed is not None:
        lines = dict(summary(plan))
        out.say(field("plan", f"{plan.short_hash}   {lines['model']} · {lines['method']}"))
        for text in survey_lines(surveyed):
            out.say(text)
        out.say(field("training", lines["training"]))
        out.say(field("memory", memory_line(prediction, plan) if prediction else lines["memory"]))
    else:
        out.say(field("plan", plan.short_hash))
        for label, text in summary(plan):
            out.say(field(label, text))
    out.say(field("place", place_line(plan, facts)))
    for line in plan.substitutions:
        out.say(field("SUBSTITUTE", line))
    for line in (*plan.warnings, *(surveyed["warnings"] if surveyed else ())):
        out.say(field("WARNING", line))
    out.say(preflight(plan))
    out.say(field("run", _shown(folder.path)))


def start_and_follow(
    folder: RunFolder, plan: Plan, out: Output, *, resume: bool = False, wait: bool = False
) -> int:
    """Start the supervisor and follow the run; its exit code."""
    return follow(folder, plan, start_supervisor(folder, plan, resume=resume, wait=wait), out)


def ready_smoke(
    loaded: LoadedJob,
    max_steps: int,
    runs: Path | None,
    out: Output,
    *,
    wait: bool,
    unsafe: bool = False,
) -> ReadyRun:
    """A smoke with its stand-ins made, its GPUs chosen and its folder."""
    say_job_warnings(loaded, out)
    plan, facts = planned_smoke(
        loaded,
        max_steps,
        out,
        runs,
        lambda plan: settle_risks(loaded, plan, runs, out, unsafe=unsafe),
    )
    plan = with_free_cards(plan, wait=wait)
    return ReadyRun(plan, facts, prepare_folder(loaded, plan, runs))


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
