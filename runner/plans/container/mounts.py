"""What of the host a run's container sees: each path at its own place. Pure, but for looking.

Every path has the same name inside as outside, so that the launch script is the very same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from runner.engines.mgm.plan import PlannedMgm
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.script.plan import ScriptPlan
from runner.engines.sft.plan import Plan, PlannedModel
from runner.plans.base import PlanBase, PlannedMount
from runner.plans.container.argv import HOME

TAKEN = ("/", "/tmp", "/opt", "/usr/bin", "/usr/local/bin", "/bin", HOME)  # noqa: S108
"""Folders that every container has itself: one of the host's is not laid over them."""


PREPARED = "prepared"
"""Of the cache: the rows that a training prepares, and all that it may write there."""


def plan_mounts(
    plan: PlanBase,
    run_folder: Path | None,
    cache: Path,
    *,
    run_writable: bool = True,
    own_mounts: bool = True,
) -> list[PlannedMount]:
    """The mounts of a run, each target once; a run folder of None is for what runs before it.

    Args:
        cache: runner's cache, read-only but for the prepared rows of a run that is to write.
        run_writable: False for what only reads a run's result.
        own_mounts: whether container.mounts of the plan count; not those of a foreign record.
    """
    found: dict[str, PlannedMount] = {}

    def add(path: Path, *, readonly: bool = True, target: str | None = None) -> None:
        mount = PlannedMount(source=str(path), target=target or str(path), readonly=readonly)
        earlier = found.get(mount.target)
        if earlier is None or (earlier.readonly and not readonly):
            found[mount.target] = mount

    match plan:
        case Plan():
            for path in _read_by(plan):
                add(path)
            for model in (plan.model, *([plan.vision.model] if plan.vision else [])):
                for link, real in _links_out(model):
                    add(real, target=str(link))
            add(cache)
        case ScriptPlan():
            script = Path(plan.script.path)
            # with what lies beside it; not where the container has a folder of its own there
            alone = str(script.parent) in TAKEN and plan.workdir != "source"
            add(script if alone else script.parent, readonly=plan.workdir != "source")
            for source in plan.inputs:
                add(Path(source.path))
        case MgmPlan():
            for path in mgm_paths(plan.mgm):
                add(path)
    if run_folder is not None:
        add(run_folder, readonly=not run_writable)
    for mount in plan.container.mounts if plan.container and own_mounts else []:
        add(Path(mount.source), readonly=mount.readonly, target=mount.target)
    mounts = {
        target: mount
        for target, mount in found.items()
        # what lies in the cache comes with it, where it comes at all
        if not mount.readonly or cache not in Path(target).parents or str(cache) not in found
    }
    if isinstance(plan, Plan) and run_folder is not None and run_writable:
        prepared = str(cache / PREPARED)
        mounts[prepared] = PlannedMount(source=prepared, target=prepared, readonly=False)
    return [mounts[target] for target in sorted(mounts)]


def _read_by(plan: Plan) -> list[Path]:
    """What the native engine reads: weights, rows, images."""
    models = [plan.model, *([plan.vision.model] if plan.vision else [])]
    paths = [place for model in models if (place := _weights(model)) is not None]
    for training in plan.trainings:
        for rows in training.rows.each:
            if rows.path is not None:
                path = Path(rows.path)
                paths.append(path)
                folder = training.data.image_folder
                # images that rows name lie beside them, or in the folder that the job names
                place = path.parent / folder if folder else path.parent
                if plan.vision is not None and place.is_dir():
                    paths.append(Path(os.path.normpath(place)))
    return paths


def mgm_paths(plan: PlannedMgm) -> list[Path]:
    """What the toolkit's stages read, as far as it is here."""
    named = [plan.toolkit, plan.model_name_or_path, plan.vision_tower, plan.vision_tower_aux]
    for training in (plan.pretrain, plan.finetune):
        named += [training.data_path, training.image_folder]
    infer = plan.infer
    named += [
        text
        for text in (
            plan.questions,
            infer.textvqa_questions,
            infer.textvqa_images,
            infer.mmbench,
        )
        if text is not None
    ]
    return [path for path in map(Path, named) if path.exists()]


def _weights(model: PlannedModel) -> Path | None:
    if model.folder is None:
        return None
    folder = Path(model.folder)
    if model.kind == "hub" and folder.parent.name == "snapshots":
        return folder.parents[1]  # a snapshot is links into blobs/ beside it
    return folder


def _links_out(model: PlannedModel) -> Iterator[tuple[Path, Path]]:
    """(where it leads, what is there) of links in a model folder that lead out of it.

    A folder of links to shards on another disk is whole only with them.
    """
    folder = Path(model.folder or "")
    if model.kind != "folder" or not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.is_symlink() and entry.exists():
            link = Path(os.path.normpath(folder / entry.readlink()))
            if folder not in link.parents:
                yield link, entry.resolve()
