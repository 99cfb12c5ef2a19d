"""The files that a plan reads, named by their fields. Pure but for listing a model's folder.

Imports the plans and runner.provenance.manifest/hashes/images/places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.script.plan import ScriptPlan
from runner.engines.sft.plan import Plan, PlannedData, PlannedModel
from runner.plans.base import PlanBase
from runner.provenance import images
from runner.provenance import input_paths as places
from runner.provenance.hashes import Hasher
from runner.provenance.image_list import ImageList, hash_images
from runner.provenance.manifest import FileRecord

_COMMIT = re.compile(r"@[0-9a-f]{40}$")
_MODEL_SUFFIXES = (
    *(".json", ".safetensors", ".bin", ".model", ".txt", ".py", ".jinja", ".gguf", ".tiktoken"),
)


def input_files(plan: PlanBase) -> list[FileRecord]:
    """Everything that the plan reads; what the plan does not know by hash has none yet."""
    match plan:
        case Plan():
            return [*_rows(plan), *_models(plan)]
        case ScriptPlan():
            read = [("script", plan.script)]
            read += [(f"inputs.{i}", each) for i, each in enumerate(plan.inputs)]
            return [
                FileRecord(
                    what=what,
                    path=each.path,
                    kind=each.kind,
                    sha256=each.sha256,
                    size_bytes=each.size_bytes,
                )
                for what, each in read
            ]
        case MgmPlan():
            return _of_mgm(plan)
    return []


def hashed(record: FileRecord, hasher: Hasher, plan: PlanBase | None = None) -> FileRecord:
    """The same file with its hash and size; of images the plan says whose rows name them.

    Raises OSError, GaveUp, and of images RunnerError as images.named.
    """
    if record.kind == "images":
        assert isinstance(plan, Plan)  # noqa: S101 - only such a plan has any
        return of_images(record, image_list(record, hasher, plan))
    path = Path(record.path)
    if record.kind == "folder":
        digest, count, size = hasher.folder(path)
        return record.model_copy(update={"sha256": digest, "files": count, "size_bytes": size})
    size = path.stat().st_size
    return record.model_copy(update={"sha256": hasher.file(path), "size_bytes": size})


def image_list(record: FileRecord, hasher: Hasher, plan: Plan) -> ImageList:
    """The images of a training, each hashed. Raises as `hashed`."""
    return hash_images(images.named(plan, phase_of(record)), hasher)


def of_images(record: FileRecord, found: ImageList) -> FileRecord:
    """The record of a training's images, once they are hashed."""
    told = {"sha256": found.sha256, "files": found.files, "size_bytes": found.size_bytes}
    return record.model_copy(update=told)


def phase_of(record: FileRecord) -> str:
    """The training whose images a record is of; "" where the job has one alone."""
    return record.what.removesuffix(places.IMAGES).removesuffix(": ")


def moving(records: Iterable[FileRecord]) -> list[str]:
    """A note for each data set or model on a hub that is named by a branch and not by a commit."""
    return [
        f"{each.what}: {each.path} names a branch, which can move; the rows that came of it are "
        "known by rows.split_sha256"
        for each in records
        if each.kind == "remote" and each.what.rpartition(": ")[2].startswith("data.")
        if not _COMMIT.search(each.path)
    ]


def seeds_of(record: Any, prefix: str = "") -> dict[str, int]:
    """Every seed in a plan's record, by its dotted field."""
    found: dict[str, int] = {}
    parts = (
        record.items()
        if isinstance(record, dict)
        else enumerate(record)
        if isinstance(record, list)
        else ()
    )
    for key, value in parts:
        name = f"{prefix}.{key}" if prefix else str(key)
        if str(key).endswith("seed") and isinstance(value, int):
            found[name] = value
        else:
            found |= seeds_of(value, name)
    return found


def _rows(plan: Plan) -> Iterator[FileRecord]:
    for training in plan.trainings:
        prefix = f"{training.phase}: " if training.phase else ""
        rows = training.rows
        named: list[tuple[str, PlannedData | None]] = [("data.train", rows.train)]
        named += [(f"data.mix.sources.{i}.rows", each) for i, each in enumerate(rows.mixed)]
        named += [("data.eval", rows.eval), ("data.test", rows.test)]
        named += [("data.questions", rows.questions)]
        for what, each in named:
            if each is None:
                continue
            if each.path is None:
                yield FileRecord(
                    what=prefix + what,
                    path=f"{each.kind}:{each.id}@{each.revision or 'main'}",
                    kind="remote",
                )
                continue
            yield FileRecord(
                what=prefix + what,
                path=each.path,
                kind="file",
                sha256=each.sha256,
                size_bytes=each.size_bytes,
            )
        if plan.vision is not None and (root := images.first_root(training)) is not None:
            yield FileRecord(what=prefix + places.IMAGES, path=str(root), kind="images")


def _models(plan: Plan) -> Iterator[FileRecord]:
    yield from _model("model", plan.model)
    if plan.vision is not None and plan.vision.model.folder != plan.model.folder:
        yield from _model("vision.model", plan.vision.model)


def _model(what: str, model: PlannedModel) -> Iterator[FileRecord]:
    if model.folder is None:
        name = f"{model.kind}:{model.id}@{model.revision or 'main'}"
        yield FileRecord(what=what, path=name, kind="remote")
    else:
        yield from _weights(what, Path(model.folder))


def _weights(what: str, folder: Path) -> Iterator[FileRecord]:
    """What transformers can read of a model's folder: configuration, tokenizer, code, weights."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        yield FileRecord(what=what, path=str(folder), kind="folder")
        return
    safe = any(path.suffix == ".safetensors" for path in files)
    for path in files:
        if path.suffix not in _MODEL_SUFFIXES or (safe and path.suffix == ".bin"):
            continue
        yield FileRecord(what=f"{what}/{path.name}", path=str(path), kind="file")


def _of_mgm(plan: MgmPlan) -> list[FileRecord]:
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
        records += _weights(what, Path(getattr(mgm, what)))
    return records
