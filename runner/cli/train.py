"""`runner train`: resolve, refuse what can't run, start the supervisor, follow it to the verdict.

Imports no torch; what needs it runs in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from runner import durable
from runner.cli.follow import follow
from runner.cli.output import Output, field
from runner.cli.report import verdict_lines
from runner.errors import RefusedError
from runner.facts import Facts, gather, package_version, require_data
from runner.folder import RunFolder, create, default_root
from runner.jobfile import LoadedJob, load_job
from runner.plan import Plan, Variant, make_plan
from runner.render import budget_line, method_line, model_line, render, steps_line
from runner.sources import BUILTIN_MODELS


def train_job(
    name: str, sets: list[str], *, max_steps: int | None, runs: Path | None, as_json: bool
) -> int:
    """The run's exit code."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    require_data(loaded, gather(loaded))
    require_training_stack()
    fetch_builtin(loaded, out)
    facts = gather(loaded)
    plan = make_plan(loaded, facts, "train", max_steps)
    folder = prepare_folder(loaded, plan, runs)
    announce(plan, facts, folder, out)
    code = start_and_follow(folder, plan, out)
    record = durable.read_json(folder.termination) or {}
    out.result(
        {"run": folder.name, "folder": str(folder.path), **record}, verdict_lines(folder, record)
    )
    return code


def require_training_stack() -> None:
    """Refuse early where the packages that train are not installed beside runner."""
    missing = [
        name
        for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
        if package_version(name) is None
    ]
    if missing:
        raise RefusedError(
            f"this Python ({sys.executable}) lacks {', '.join(missing)}",
            "pip install 'runner[train]' into it",
        )


def fetch_builtin(loaded: LoadedJob, out: Output, *, required: bool = True) -> None:
    """Bring the built-in model into the user's cache, once.

    Raises RefusedError where it can't be had and is `required`.
    """
    source = gather(loaded).model
    if source.kind != "builtin" or source.present:
        return
    out.say(field("fetching", f"{BUILTIN_MODELS[source.id]} into {source.folder}"))
    done = subprocess.run(
        [sys.executable, "-m", "runner.engine.builtin", str(source.folder)],
        stdout=sys.stderr,
    )
    if done.returncode and required:
        raise RefusedError(
            "the built-in model is not here and could not be fetched",
            "the lines above say why; --set model=FOLDER takes another model",
        )


def make_stand_in(plan: Plan, out: Output) -> None:
    """Make the tiny random model of a smoke, where its plan asks for one and it is not there."""
    model = plan.model
    if model.kind != "standin" or model.folder is None or model.model_type is None:
        return
    if (Path(model.folder) / "config.json").is_file():
        return
    out.say(field("making", f"a tiny random {model.model_type} in {model.folder}"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "runner.engine.standin",
            model.model_type,
            model.folder,
            str(plan.train_rows.path),
        ],
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RefusedError(f"the stand-in can't be made: {lines[-1] if lines else 'no reason'}")


def prepare_folder(loaded: LoadedJob, plan: Plan, runs: Path | None) -> RunFolder:
    """A new run folder with the rendered files and the source of each value."""
    folder = create(runs or default_root(), plan.job, plan.short_hash, plan.variant, render(plan))
    durable.write_json(
        folder.sources,
        {"schema_version": 1, "job_file": str(loaded.path), "sources": dict(loaded.sources)},
    )
    return folder


def announce(plan: Plan, facts: Facts, folder: RunFolder, out: Output) -> None:
    """The quiet lines before a run starts."""
    out.say(field("plan", f"{plan.short_hash}   {model_line(plan)} · {method_line(plan)}"))
    out.say(field("data", f"{plan.train_rows.path or 'hub:' + str(plan.train_rows.id)}"))
    out.say(field("training", steps_line(plan)))
    out.say(field("memory", budget_line(plan)))
    for line in plan.substitutions:
        out.say(field("SUBSTITUTE", line))
    out.say(field("run", _shown(folder.path)))


def start_and_follow(folder: RunFolder, plan: Plan, out: Output) -> int:
    """Start the supervisor in a session of its own and follow the run; its exit code."""
    with folder.supervisor_log.open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "runner.supervise", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return follow(folder, plan, supervisor, out)


def start(
    loaded: LoadedJob, variant: Variant, max_steps: int | None, runs: Path | None, out: Output
) -> tuple[Plan, RunFolder]:
    """A smoke's plan and folder, its stand-ins made."""
    plan = make_plan(loaded, gather(loaded), variant, max_steps)
    make_stand_in(plan, out)
    return plan, prepare_folder(loaded, plan, runs)


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
