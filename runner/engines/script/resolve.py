"""ScriptJob and facts -> ScriptPlan: what a run of a user's own script does on this host.

`gather_script` looks at the files; `make_script_plan` is pure.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast

from runner.common.caches import file_sha256
from runner.common.errors import Problem, RefusedError, SpecError, nearest
from runner.engines.script.job import ScriptJob
from runner.engines.script.plan import PlannedInput, ScriptPlan
from runner.jobs.load import LoadedJob
from runner.plans.base import Variant
from runner.plans.facts import HostFacts, gather_host
from runner.plans.resolve import (
    gpu_warnings,
    planned_budget,
    planned_container,
    planned_launch,
    refuse_broken_driver,
)


@dataclass(frozen=True, kw_only=True)
class ScriptFacts(HostFacts):
    """What decides the plan of a script."""

    script: PlannedInput
    executable: bool
    inputs: tuple[PlannedInput, ...]


def script_job(loaded: LoadedJob) -> ScriptJob:
    """The job, known to be a script's."""
    return cast(ScriptJob, loaded.job)


def gather_script(loaded: LoadedJob) -> ScriptFacts:
    """The facts for one script on this host.

    Raises:
        SpecError: the script, or something that it reads, is not there.
        RefusedError: launch.on is docker, and the job can't run there.
    """
    job = script_job(loaded)
    script = _find(loaded, "script", job.script)
    if script.kind != "file":
        raise SpecError(
            [Problem(_where(loaded, "script"), "script", "is a folder", job.script, "a file")]
        )
    inputs = tuple(_find(loaded, f"inputs.{i}", text) for i, text in enumerate(job.inputs))
    host = gather_host(job)
    return ScriptFacts(
        **{field.name: getattr(host, field.name) for field in fields(host)},
        script=script,
        executable=os.access(script.path, os.X_OK),
        inputs=inputs,
    )


def make_script_plan(
    loaded: LoadedJob,
    facts: ScriptFacts,
    variant: Variant = "train",
    max_steps: int | None = None,
) -> ScriptPlan:
    """Decide everything that can be decided for a script.

    Raises:
        RefusedError: it asks for GPUs that the host lacks, can't be run, or has no smoke.
    """
    job = script_job(loaded)
    arguments, environment = list(job.arguments), dict(job.environment)
    if variant == "smoke":
        if job.smoke is None:
            raise RefusedError(
                f"{loaded.name} says nothing of a smoke",
                "add `smoke: {arguments: [...]}` with what makes the script short; {max_steps} in "
                "an argument stands for the steps",
            )
        if job.smoke.arguments is not None:
            arguments = list(job.smoke.arguments)
        environment |= job.smoke.environment
    elif max_steps is not None:
        raise RefusedError(
            "--max-steps means nothing to a script of your own",
            "give it in arguments; in a smoke, {max_steps} in smoke.arguments stands for it",
        )
    suffix = Path(facts.script.path).suffix
    runs_with: Literal["python", "bash", "itself"] = (
        "python" if suffix == ".py" else "bash" if suffix in (".sh", ".bash") else "itself"
    )
    if runs_with == "itself" and not facts.executable:
        raise RefusedError(
            f"{facts.script.path} is neither .py nor .sh, and not executable",
            "chmod +x makes it so",
        )
    substitutions: list[str] = []
    device = _device(job, facts)
    python = job.python or facts.python
    return ScriptPlan(
        job=loaded.name,
        description=job.description,
        variant=variant,
        engine="script",
        script=facts.script,
        runs_with=runs_with,
        arguments=arguments,
        environment=environment,
        inputs=list(facts.inputs),
        workdir=job.workdir,
        max_steps=max_steps if variant == "smoke" else None,
        launch=planned_launch(job, facts, device),
        budget=planned_budget(job, device, substitutions),
        container=planned_container(job, facts, online=False),
        timeout_minutes=job.timeout_minutes,
        on_end=job.on_end,
        substitutions=substitutions,
        warnings=gpu_warnings(job, facts, device),
        python=python,
    )


def _device(job: ScriptJob, facts: HostFacts) -> Literal["cuda", "cpu"]:
    """Where it trains: what its own torch can do is not known, so a GPU is taken where one is."""
    refuse_broken_driver(job, facts)
    if job.launch.device == "cuda" and not facts.gpus:
        raise RefusedError(
            f"launch.device is cuda, but {facts.gpu_absence}",
            "runner doctor says more; --set launch.device=cpu trains on CPU",
        )
    return "cuda" if job.launch.device != "cpu" and facts.gpus else "cpu"


def _find(loaded: LoadedJob, field: str, text: str) -> PlannedInput:
    """A path of the job: beside its file, or from here; files are hashed."""
    given = Path(text).expanduser()
    places = [given.absolute()]
    overridden = any(field == name or field.startswith(f"{name}.") for name in loaded.overridden)
    if not given.is_absolute() and not overridden:
        places.insert(0, loaded.path.parent / given)
    for place in places:
        if place.is_dir():
            return PlannedInput(path=str(place.resolve()), kind="folder")
        if place.is_file():
            resolved = place.resolve()
            return PlannedInput(
                path=str(resolved),
                kind="file",
                sha256=file_sha256(resolved),
                size_bytes=resolved.stat().st_size,
            )
    folder = places[0].parent
    near = nearest(given.name, [each.name for each in folder.iterdir()] if folder.is_dir() else [])
    raise SpecError(
        [
            Problem(
                _where(loaded, field),
                field,
                "is not on this machine",
                text,
                f"a file or folder; looked for {places[0]}",
                str(folder / near) if near else None,
            )
        ]
    )


def _where(loaded: LoadedJob, field: str) -> str:
    base = field.split(".")[0]
    return loaded.sources.get(field) or loaded.sources.get(base) or str(loaded.path)
