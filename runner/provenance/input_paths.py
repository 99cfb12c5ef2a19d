"""Where a plan's inputs lie, by the part each plays; the same plan with them elsewhere.

Pure, but for `is_here`. Imports the plans. A part is named as the manifest names its file
(`data.train`, `model`, `inputs.0`), with its training's name before it where there are several
(`align: data.train`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.plan_kinds import PLANS
from runner.engines.script.plan import ScriptPlan
from runner.engines.sft.plan import Plan, PlannedData, PlannedModel
from runner.plans.base import PlanBase

Group = Literal["data", "model", "code"]
Key = tuple[str | int, ...]
IMAGES = "data.image_folder"
"""Of an image-text plan: the folder that the images which rows name start from."""
_MGM_MODELS = ("model_name_or_path", "vision_tower", "vision_tower_aux")
_MGM_DATA = (
    *("pretrain.data_path", "pretrain.image_folder", "pretrain.questions"),
    *("finetune.data_path", "finetune.image_folder"),
)
_BENCHMARKS = ("infer.textvqa_questions", "infer.textvqa_images", "infer.mmbench")


@dataclass(frozen=True)
class Part:
    """One thing that a plan reads."""

    what: str
    group: Group
    path: str | None
    """Where it lies; None of what the trainer itself fetches."""
    keys: tuple[Key, ...]
    """The fields of the plan that say so."""
    id: str | None = None
    """On a hub, as a job names it; None of files of the user's own."""
    revision: str | None = None


def parts(plan: PlanBase) -> list[Part]:
    """Everything that a plan reads by a path, each part once."""
    match plan:
        case Plan():
            return [*_of_rows(plan), *_of_models(plan)]
        case ScriptPlan():
            found = [Part("script", "code", plan.script.path, (("script", "path"),))]
            for number, each in enumerate(plan.inputs):
                key: Key = ("inputs", number, "path")
                found.append(Part(f"inputs.{number}", "data", each.path, (key,)))
            return found
        case MgmPlan():
            return list(_of_mgm(plan))
    return []


def relocated(plan: PlanBase, places: Mapping[str, str]) -> PlanBase:
    """The plan with each of the parts in `places` where they say.

    `python` is the interpreter. Raises KeyError for a name that is no part of the plan.
    """
    record = plan.model_dump(mode="json")
    keys = {part.what: part.keys for part in parts(plan)}
    keys["python"] = (("python",), ("mgm", "python")) if "mgm" in record else (("python",),)
    for what, path in places.items():
        for key in keys[what]:
            _set(record, key, path)
    return PLANS[record["engine"]].model_validate(record)


def is_here(path: str | Path | None) -> bool:
    """Whether something lies there; what the user may not look at does not."""
    try:
        return path is not None and Path(path).exists()
    except OSError:
        return False


def _of_rows(plan: Plan) -> Iterator[Part]:
    for number, training in enumerate(plan.trainings):
        prefix = f"{training.phase}: " if training.phase else ""
        place: Key = ("earlier", number) if number < len(plan.earlier) else ()
        rows = training.rows
        named: list[tuple[str, PlannedData, Key]] = [("data.train", rows.train, ("train",))]
        named += [
            (f"data.mix.sources.{i}.rows", each, ("mixed", i)) for i, each in enumerate(rows.mixed)
        ]
        for side in ("eval", "test", "questions"):
            if (given := getattr(rows, side)) is not None:
                named.append((f"data.{side}", given, (side,)))
        for what, each, key in named:
            keys = ((*place, "rows", *key, "path"),)
            remote = f"{each.kind}:{each.id}" if each.kind != "file" else None
            yield Part(prefix + what, "data", each.path, keys, remote, each.revision)
        if plan.vision is not None:
            folder: Key = (*place, "data", "image_folder")
            yield Part(f"{prefix}{IMAGES}", "data", training.data.image_folder, (folder,))


def _of_models(plan: Plan) -> Iterator[Part]:
    vision = plan.vision.model if plan.vision is not None else None
    keys = _model_keys(plan.model, ("model",))
    if vision is not None and vision.folder == plan.model.folder:  # one stand-in for both
        keys += _model_keys(vision, ("vision", "model"))
    yield _model("model", plan.model, keys)
    if vision is not None and vision.folder != plan.model.folder:
        yield _model("vision.model", vision, _model_keys(vision, ("vision", "model")))


def _model(what: str, model: PlannedModel, keys: tuple[Key, ...]) -> Part:
    known = model.kind in ("hub", "modelscope", "builtin")
    name = model.id if model.kind == "hub" else f"{model.kind}:{model.id}"
    return Part(what, "model", model.folder, keys, name if known else None, model.revision)


def _model_keys(model: PlannedModel, place: Key) -> tuple[Key, ...]:
    folder: Key = (*place, "folder")
    # of a folder of the user's own, the id is what the job called it: its path
    return (folder, (*place, "id")) if model.kind == "folder" else (folder,)


def _of_mgm(plan: MgmPlan) -> Iterator[Part]:
    record = plan.mgm.model_dump(mode="json")
    named: list[tuple[str, Group]] = [("toolkit", "code")]
    named += [(what, "data") for what in (*_MGM_DATA, *_BENCHMARKS)]
    named += [(what, "model") for what in _MGM_MODELS]
    for what, group in named:
        # the plan keeps the questions apart from the training that asks them
        key: Key = ("questions",) if what == "pretrain.questions" else tuple(what.split("."))
        value: Any = record
        for step in key:
            value = value[step]
        if value is not None:
            yield Part(what, group, str(value), (("mgm", *key),))


def _set(record: Any, key: Key, value: str) -> None:
    for step in key[:-1]:
        record = record[step]
    record[key[-1]] = value
