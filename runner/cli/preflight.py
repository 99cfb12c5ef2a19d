"""What must hold, or be fetched or made, before a run starts. Imports no torch.

Each function refuses with what is lacking and the way out; nothing has been started by then.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from runner.cli.output import Output, field
from runner.errors import RefusedError
from runner.facts import Facts, package_version
from runner.plan import Plan
from runner.sources import BUILTIN_MODELS


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


def fetch_builtin(facts: Facts, out: Output, *, required: bool = True) -> Facts:
    """Bring the built-in model into the user's cache, once; the facts as they are after that.

    Raises RefusedError where it can't be had and is `required`.
    """
    source = facts.model
    if source.kind != "builtin" or source.present:
        return facts
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
    return replace(facts, model=replace(source, present=done.returncode == 0))


def make_stand_in(plan: Plan, out: Output) -> None:
    """Make the tiny random model of a smoke, where its plan asks for one and it is not there."""
    model = plan.model
    if model.kind != "standin" or model.folder is None or model.model_type is None:
        return
    if (Path(model.folder) / "config.json").is_file():
        return
    if plan.train_rows.path is None:
        raise RefusedError(
            "a stand-in model needs rows for its tokenizer, and the job's rows are on the hub",
            "name a small file of the same layout in data.sample",
        )
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


def require_hub(facts: Facts) -> None:
    """Refuse at once where weights must come from the hub and it can't be reached.

    The libraries try for most of a minute, in the run, before they give up.
    """
    model = facts.model
    if model.kind != "hub" or model.present:
        return
    from runner.doctor.probes import hub

    found = hub()
    if found.offline is None and not found.failure:
        return
    why = (
        f"{found.offline} forbids the network"
        if found.offline
        else f"{found.endpoint} can't be reached: {found.text or found.failure}"
    )
    raise RefusedError(
        f"the weights of {model.id} are not on this machine, and {why}",
        "give a folder with --set model=FOLDER, or name a mirror in HF_ENDPOINT; "
        "runner smoke runs the job with a stand-in",
    )
