"""What a plan of the MGM toolkit reads: as files, parts and paths. Looks whether paths exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.engines.mgm.plan import PlannedMgm
from runner.engines.mgm.run_plan import MgmPlan
from runner.plans.inputs import FileRecord, Group, Key, Part, model_files

_MODELS = ("model_name_or_path", "vision_tower", "vision_tower_aux")


_DATA = (
    *("pretrain.data_path", "pretrain.image_folder", "pretrain.questions"),
    *("finetune.data_path", "finetune.image_folder"),
)


_BENCHMARKS = ("infer.textvqa_questions", "infer.textvqa_images", "infer.mmbench")


def input_files(plan: MgmPlan) -> list[FileRecord]:
    """Everything that the toolkit reads; nothing of it is known by hash yet."""
    mgm = plan.mgm
    records = [
        FileRecord(what="pretrain.data_path", path=mgm.pretrain.data_path, kind="file"),
        FileRecord(what="finetune.data_path", path=mgm.finetune.data_path, kind="file"),
        FileRecord(what="pretrain.image_folder", path=mgm.pretrain.image_folder, kind="folder"),
        FileRecord(what="finetune.image_folder", path=mgm.finetune.image_folder, kind="folder"),
        FileRecord(what="toolkit", path=mgm.toolkit, kind="folder"),
    ]
    if mgm.questions:
        records.append(FileRecord(what="pretrain.questions", path=mgm.questions, kind="file"))
    for what in ("model_name_or_path", "vision_tower", "vision_tower_aux"):
        records += model_files(what, Path(getattr(mgm, what)))
    return records


def parts(plan: MgmPlan) -> Iterator[Part]:
    """Everything that the toolkit reads by a path, each part once."""
    record = plan.mgm.model_dump(mode="json")
    named: list[tuple[str, Group]] = [("toolkit", "code")]
    named += [(what, "data") for what in (*_DATA, *_BENCHMARKS)]
    named += [(what, "model") for what in _MODELS]
    for what, group in named:
        # the plan keeps the questions apart from the training that asks them
        key: Key = ("questions",) if what == "pretrain.questions" else tuple(what.split("."))
        value: Any = record
        for step in key:
            value = value[step]
        if value is not None:
            yield Part(what, group, str(value), (("mgm", *key),))


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
