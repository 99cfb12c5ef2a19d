"""A plan again from a manifest alone: rebuilt, placed on this machine, its inputs checked.

Asks the container program where the run was in a container. Starts nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from runner.container.cli import ContainerCli
from runner.container.images import find_image
from runner.errors import RefusedError, RunnerError
from runner.facts import HostFacts, gather_host
from runner.job_base import JobBase, LaunchSettings
from runner.plan import Plan, PlannedModel
from runner.plan_base import PlanBase
from runner.plan_kinds import PLANS
from runner.plan_mgm import MgmPlan
from runner.provenance import inputs
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import FileRecord, Manifest
from runner.resolve_base import planned_container
from runner.sources import find_model

On = Literal["local", "docker"]


def plan_of(manifest: Manifest) -> PlanBase:
    """The plan that the run had.

    Raises RunnerError where this runner reads it otherwise than the one that wrote it.
    """
    engine = str(manifest.plan.get("engine"))
    try:
        plan = PLANS[engine].model_validate(manifest.plan)
    except (KeyError, ValidationError) as error:
        raise RunnerError(
            f"this runner can't read the plan of {manifest.run}: {str(error).splitlines()[0]}",
            f"it was made by runner {_code(manifest)}",
        ) from None
    if plan.hash != manifest.plan_hash:
        raise RunnerError(
            f"the plan in the manifest of {manifest.run} is {plan.short_hash} to this runner, and "
            f"was {manifest.plan_hash[:7]}: it was edited, or another runner made it",
            f"it was made by runner {_code(manifest)}",
        )
    return plan


def placed(plan: PlanBase, on: On | None) -> tuple[PlanBase, HostFacts]:
    """The plan for this machine: in the image that it had, or where `on` says.

    Raises RefusedError where that image is not here, or the plan can't be moved.
    """
    wanted = on or ("docker" if plan.container is not None else "local")
    moved = (wanted == "docker") != (plan.container is not None)
    if moved and isinstance(plan, MgmPlan):
        raise RefusedError(
            "a run of engine mgm is reproduced where it ran: its paths are the toolkit's own",
            "leave --on out",
        )
    if wanted == "local":
        here = plan.python if Path(plan.python).is_file() and not moved else sys.executable
        facts = gather_host(JobBase(launch=LaunchSettings(on="local")))
        return _with_models(plan.model_copy(update={"container": None, "python": here})), facts
    if plan.container is None:
        job = JobBase(launch=LaunchSettings(on="docker"))
        facts = gather_host(job)
        container = planned_container(job, facts, online=False)
        return plan.model_copy(update={"container": container, "python": facts.python}), facts
    cli = ContainerCli(plan.container.program)
    if find_image(cli, plan.container.image_id) is None:
        raise RefusedError(
            f"the image that the run had is not here: {plan.container.image} "
            f"{plan.container.image_id[:19]}",
            "runner image load FILE brings a saved one; --on local takes this machine's packages",
        )
    named = JobBase(launch=LaunchSettings(on="docker")).container.model_copy(
        update={"image": plan.container.image_id}
    )
    return plan, gather_host(JobBase(launch=LaunchSettings(on="docker"), container=named))


def wrong_inputs(manifest: Manifest, plan: PlanBase, hasher: Hasher) -> Iterator[str]:
    """What the run read that is missing here or is another, a line each, by its hash."""
    here = {each.what: each for each in inputs.input_files(plan)}
    for record in manifest.files:
        if record.kind == "remote" or record.sha256 is None:
            continue  # fetched by the trainer, or never known
        if record.kind == "images":  # verify compares each, once the new run has hashed them
            if not Path(record.path).is_dir():
                yield f"{record.what}: {record.path}, where {record.files} images lay, is not here"
            continue
        now = here.get(record.what, record)
        if not Path(now.path).exists():
            yield f"{record.what}: {now.path} is not here (sha256 {record.sha256[:12]})"
            continue
        found = inputs.hashed(replace_hash(now), hasher)
        if found.sha256 != record.sha256:
            yield (
                f"{record.what}: {now.path} is another file than the run read: sha256 "
                f"{record.sha256[:12]} → {str(found.sha256)[:12]}"
            )


def replace_hash(record: FileRecord) -> FileRecord:
    """The record as if nothing were known of its content."""
    return record.model_copy(update={"sha256": None, "size_bytes": None, "files": None})


def _with_models(plan: PlanBase) -> PlanBase:
    """The plan with hub weights where they lie on this machine, if not where they lay."""
    if not isinstance(plan, Plan):
        return plan
    model = _found(plan.model)
    vision = plan.vision
    if vision is not None:
        vision = vision.model_copy(update={"model": _found(vision.model)})
    return plan.model_copy(update={"model": model, "vision": vision})


def _found(model: PlannedModel) -> PlannedModel:
    if model.kind != "hub" or (model.folder and Path(model.folder).is_dir()):
        return model
    text = f"{model.id}@{model.revision}" if model.revision else model.id
    source = find_model(text, beside=None, where="the manifest")
    return model.model_copy(update={"folder": str(source.folder) if source.folder else None})


def _code(manifest: Manifest) -> str:
    commit = f" ({manifest.code.commit[:12]})" if manifest.code.commit else ""
    return manifest.code.version + commit
