"""The files that a plan reads, named by their fields. Reads files to hash them.

Asks the plan's engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.plans.inputs import IMAGES, FileRecord
from runner.provenance.hashes import Hasher
from runner.provenance.image_list import ImageList, hash_images

_COMMIT = re.compile(r"@[0-9a-f]{40}$")


def input_files(plan: Plan) -> list[FileRecord]:
    """Everything that the plan reads; what the plan does not know by hash has none yet."""
    return engine_of(plan).input_files(plan)


def hashed(record: FileRecord, hasher: Hasher, plan: Plan | None = None) -> FileRecord:
    """The same file with its hash and size; of images the plan says whose rows name them.

    Raises OSError, GaveUp, and of images RunnerError as the engine's images.
    """
    if record.kind == "images":
        assert plan is not None  # noqa: S101 - images are always hashed with their plan
        return of_images(record, image_list(record, hasher, plan))
    path = Path(record.path)
    if record.kind == "folder":
        digest, count, size = hasher.folder(path)
        return record.model_copy(update={"sha256": digest, "files": count, "size_bytes": size})
    size = path.stat().st_size
    return record.model_copy(update={"sha256": hasher.file(path), "size_bytes": size})


def image_list(record: FileRecord, hasher: Hasher, plan: Plan) -> ImageList:
    """The images of a training, each hashed. Raises as `hashed`."""
    return hash_images(engine_of(plan).images(plan, phase_of(record)), hasher)


def of_images(record: FileRecord, found: ImageList) -> FileRecord:
    """The record of a training's images, once they are hashed."""
    told = {"sha256": found.sha256, "files": found.files, "size_bytes": found.size_bytes}
    return record.model_copy(update=told)


def phase_of(record: FileRecord) -> str:
    """The training whose images a record is of; "" where the job has one alone."""
    return record.what.removesuffix(IMAGES).removesuffix(": ")


def moving(records: Iterable[FileRecord]) -> list[str]:
    """A note for each data set or model on a hub that is named by a branch and not by a commit."""
    return [
        f"{each.what}: {each.path} names a branch, which can move; the rows that came of it are "
        "known by rows.split_sha256"
        for each in records
        if each.kind == "remote" and each.what.rpartition(": ")[2].startswith("data.")
        if not _COMMIT.search(each.path)
    ]


def seeds_of(record: object, prefix: str = "") -> dict[str, int]:
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
