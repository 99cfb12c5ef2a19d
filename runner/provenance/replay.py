"""Rebuild a plan from a manifest alone, place it on this machine, check its inputs.

Runs the container program if the run was in a container. Starts nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from runner.common.errors import RefusedError, RunnerError
from runner.containers.cli import require_cli
from runner.containers.images import find_image
from runner.engines.inputs import parts
from runner.engines.registry import ENGINES, engine_of
from runner.engines.render import read_any_plan
from runner.jobs.base import Job, LaunchSettings
from runner.plans.base import Plan
from runner.plans.facts import HostFacts, gather_host
from runner.plans.inputs import FileRecord, Part, is_here
from runner.plans.resolve import planned_container
from runner.provenance import inputs
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest
from runner.runs.folder import RunFolder
from runner.runs.origin import Origin, origin_of

On = Literal["local", "docker"]


def plan_of(manifest: Manifest) -> Plan:
    """The plan that the run had.

    Raises RunnerError where this runner reads it otherwise than the one that wrote it.
    """
    engine = str(manifest.plan.get("engine"))
    try:
        plan: Plan = ENGINES[engine].plan_type.model_validate(manifest.plan)
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


def origin_of_manifest(folder: RunFolder, plan: Plan) -> Origin:
    """Whose a manifest's plan is: its run's, where it opens no more than the sealed plan."""
    origin = origin_of(folder.path)
    if not origin.is_own or _powers(read_any_plan(folder.plan)) == _powers(plan):
        return origin
    return Origin("unsealed", "has a manifest whose plan opens other things than its sealed plan")


def _powers(plan: Plan) -> dict[str, object]:
    """What of a plan runs programs, opens this machine or sends anything out."""
    record = plan.model_dump(mode="json")
    toolkit = record.get("mgm") or {}
    kept = ("python", "container", "trust_remote_code", "script", "tracking", "environment")
    return {
        **{name: record.get(name) for name in kept},
        **{name: toolkit.get(name) for name in ("toolkit", "python")},
    }


def placed(plan: Plan, on: On | None) -> tuple[Plan, HostFacts]:
    """The plan for this machine: in the image that it had, or where `on` says.

    Raises RefusedError where that image is not here, or the plan can't be moved.
    """
    wanted = on or ("docker" if plan.container is not None else "local")
    moved = (wanted == "docker") != (plan.container is not None)
    if moved and engine_of(plan).is_tied_to_place:
        raise RefusedError(
            f"a run of engine {plan.engine} is reproduced where it ran: its paths are its own",
            "leave --on out",
        )
    if wanted == "local":
        here = plan.python if is_here(plan.python) and not moved else sys.executable
        facts = gather_host(Job(launch=LaunchSettings(on="local")))
        return plan.model_copy(update={"container": None, "python": here}), facts
    if plan.container is None:
        job = Job(launch=LaunchSettings(on="docker"))
        facts = gather_host(job)
        container = planned_container(job, facts, online=False)
        return plan.model_copy(update={"container": container, "python": facts.python}), facts
    cli = require_cli()
    box = plan.container.model_copy(update={"program": cli.program})
    plan = plan.model_copy(update={"container": box})
    if find_image(cli, box.image_id) is None:
        raise RefusedError(
            f"the image that the run had is not here: {box.image} {box.image_id[:19]}",
            "runner image load FILE brings a saved one; --on local takes this machine's packages",
        )
    named = Job(launch=LaunchSettings(on="docker")).container.model_copy(
        update={"image": box.image_id}
    )
    return plan, gather_host(Job(launch=LaunchSettings(on="docker"), container=named))


@dataclass(frozen=True)
class Wrong:
    """Something that the run read, and that is missing here or is another."""

    part: str
    """The part of the plan that it belongs to, by which --at names it."""
    text: str
    id: str | None = None
    """Of what is missing: how a job names it, where it is on a hub."""


def wrong_inputs(manifest: Manifest, plan: Plan, hasher: Hasher) -> Iterator[Wrong]:
    """What of the run's inputs is missing here or is another, by its hash."""
    here = {each.what: each for each in inputs.input_files(plan)}
    known = {part.what: part for part in parts(plan)}
    missing: set[str] = set()
    for record in manifest.files:
        name = record.what if record.what in known else record.what.rpartition("/")[0]
        part = known.get(name)
        if record.kind == "remote" or record.sha256 is None or name in missing:
            continue  # fetched by the trainer, or never known; or said already
        absent = part is not None and not is_here(part.path)
        if part is not None and absent and record.kind != "images":
            missing.add(name)
            yield _missing(manifest, part)
            continue
        now = here.get(record.what)
        path = Path(now.path) if now else Path((part and part.path) or "", Path(record.what).name)
        if now is None or not is_here(path):
            yield Wrong(name, f"{record.what}: {path} is not here (sha256 {record.sha256[:12]})")
            continue
        try:
            found = inputs.hashed(replace_hash(now), hasher, plan).sha256
        except (RunnerError, ImportError) as error:
            yield Wrong(name, f"{record.what} can't be hashed: {error}")
            continue
        if found != record.sha256:
            what = {"images": "holds other images", "folder": "is another folder"}.get(record.kind)
            yield Wrong(
                name,
                f"{record.what}: {path} {what or 'is another file'} than the run read: sha256 "
                f"{record.sha256[:12]} → {str(found)[:12]}",
            )
    recorded = {record.what for record in manifest.files}
    for what, record in here.items():
        name = what.rpartition("/")[0]
        whole = any(each.startswith(f"{name}/") for each in recorded)
        if name in known and whole and name not in missing and what not in recorded:
            yield Wrong(name, f"{what}: {record.path} was not there when the run read its folder")


def _missing(manifest: Manifest, part: Part) -> Wrong:
    files = [
        each
        for each in manifest.files
        if each.what == part.what or each.what.startswith(f"{part.what}/")
    ]
    largest = max(files, key=lambda each: each.size_bytes or 0)
    named = f"{Path(largest.path).name} " if len(files) > 1 else ""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    revision = f"@{part.revision}" if part.revision else ""
    name = f"{part.id}{revision}" if part.id else part.path
    known = f"{named}sha256 {str(largest.sha256)[:12]}{more}"
    return Wrong(part.what, f"{part.what}: {name} is not here ({known})", f"{part.id}{revision}")


def replace_hash(record: FileRecord) -> FileRecord:
    """The record as if nothing were known of its content."""
    return record.model_copy(update={"sha256": None, "size_bytes": None, "files": None})


def _code(manifest: Manifest) -> str:
    commit = f" ({manifest.code.commit[:12]})" if manifest.code.commit else ""
    return manifest.code.version + commit
