"""Surveys that were made before: kept by all that decides them, or as if they were not there.

Imports no torch. A survey is that of a plan, word by word; of the files that it reads (rows,
tokenizer, config: their content; weights, of which only headers are read: size, times and inode);
of the packages and modules that Python finds, their versions; and of runner's own code. What of
these can't be told makes a survey one that is not kept, and so is one of images, which are files
that rows name. An entry that is damaged, or whose prepared rows are gone, is as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import runner
from runner.common import durable
from runner.common.caches import cache_folder
from runner.common.typed_json import WrongRecord, typed_record
from runner.data.cache import is_whole
from runner.engines.sft.memory.ask import ASSUME_VARIABLE
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.survey_record import Survey
from runner.plans.base import PlannedContainer
from runner.plans.plan_file import plan_yaml

SCHEMA_VERSION = 1
FOLDER = "surveys"
KEPT = 200
"""The newest that stay; each is some KB."""
READ_BYTES = 64 << 20
"""A larger file of a model is known by size, times and inode."""
SETTLED_SECONDS = 2.0
"""A file changed a moment ago can change again within the same times; nothing is kept of it."""
_VARIABLES = ("PYTHONPATH", ASSUME_VARIABLE, "GLIBC_TUNABLES")
"""Where else modules come from, and what the predicted memory depends on besides."""


def survey_key(plan: SftPlan, samples: int) -> str | None:
    """Equal where a survey would say the same; None where that can't be told."""
    if plan.vision is not None or plan.model.folder is None:
        return None
    # whichever GPUs: it depends on their number, which is that of the processes
    launch = plan.launch.model_copy(update={"gpu_uuids": []})
    rows = [part.path for training in plan.trainings for part in training.rows.each]
    if None in rows:
        return None
    try:
        parts = [
            SCHEMA_VERSION,
            plan_yaml(plan.model_copy(update={"launch": launch})),
            samples,
            [_content(Path(path)) for path in rows if path is not None],
            _folder(Path(plan.model.folder)),
            packages(sys.path, plan.container),
            own_code(Path(runner.__file__).parent),
            [os.environ.get(name) for name in _VARIABLES],
            str(cache_folder()),
        ]
    except OSError:
        return None
    return _hash(parts)


def kept_survey(key: str) -> Survey | None:
    """What is kept under a key, if it is whole and its prepared rows are still there."""
    record = durable.read_json(_place(key))
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        return None
    try:
        survey = typed_record(record.get("survey"), Survey, "a survey")
    except WrongRecord:
        return None
    if record.get("sha256") != _hash([key, survey]):
        return None
    prepared = {str(part["data"]["prepared_in"]) for part in survey["trainings"]}
    return survey if all(is_whole(Path(folder)) for folder in prepared) else None


def keep_survey(key: str, survey: Survey) -> None:
    """Keep a survey; one without a predicted memory is none that should be repeated.

    A disk that takes nothing costs time only.
    """
    if survey.get("memory") is None:
        return
    path = _place(key)
    record = {"schema_version": SCHEMA_VERSION, "sha256": _hash([key, survey]), "survey": survey}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(path, record)
        entries = sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime)
        for old in entries[:-KEPT]:
            old.unlink(missing_ok=True)


def packages(places: Iterable[str], container: PlannedContainer | None) -> list[object]:
    """Python and the packages that it finds in `places`, by name and version; or an image's id.

    Each package has a folder or file named after both (PyPA's "Recording installed projects").
    """
    if container is not None:
        return [container.image_id]
    found: list[object] = [sys.version, sys.prefix]
    for place in places:
        names = sorted(each.name for each in durable.entries(Path(place or ".")))
        installed = [name for name in names if name.endswith(("-info", ".egg-link"))]
        found += [[place, installed]] if installed else []  # not the folder one stands in
    return found


def own_code(package: Path) -> str:
    """sha256 over the modules of runner."""
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        whole.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return whole.hexdigest()


def _folder(folder: Path) -> list[object]:
    """All files of a model's folder, links followed. Raises OSError where one can't be read."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return [[str(folder), str(path.relative_to(folder)), _content(path)] for path in files]


def _content(path: Path) -> list[object]:
    """What tells a file's content. Raises OSError: it can't be read, or may still be changing."""
    stat = path.stat()
    if stat.st_size <= READ_BYTES:
        return [str(path), hashlib.sha256(path.read_bytes()).hexdigest()]
    if time.time() - stat.st_ctime < SETTLED_SECONDS:
        raise OSError(f"{path} changed a moment ago")
    return [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino]


def _hash(parts: list[object]) -> str:
    canonical = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _place(key: str) -> Path:
    return cache_folder() / FOLDER / f"{key}.json"
