"""Where a job's weights and rows come from, and whether they are on this machine.

Standard library only: reads folders, files, the hub's cache layout and the records that
runner.fetch left; downloads nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.common.caches import cache_folder, file_sha256, hub_cache
from runner.common.errors import Problem, SpecError, nearest

HubKind = Literal["hub", "modelscope"]
# no name on a hub has two dots in a row, nor has one of git's: they would lead out of the cache
HUB_ID = re.compile(r"^(?!.*\.\.)(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?$")
BUILTIN_MODELS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
INDEX = "model.safetensors.index.json"
"""Names the files of weights that are stored in several."""
MANIFEST = "runner-source.json"
"""In a folder that runner fetched: what each file is. Written last: where it is, all of it is."""


@dataclass(frozen=True)
class ModelSource:
    """A job's weights: what was asked for and the folder they lie in, if any."""

    kind: Literal["folder", "hub", "modelscope", "builtin"]
    id: str
    revision: str | None
    folder: Path | None
    """Where the weights are, or (builtin, modelscope) will be; None for a hub id without a copy."""
    present: bool
    """All of it is on this machine."""


@dataclass(frozen=True)
class DataSource:
    """A job's rows: a file with its content hash, or a hub's data set, fetched or not."""

    kind: Literal["file", "hub", "modelscope"]
    path: Path | None
    """The file; for a hub's data set the Parquet file of its rows, there once `present`."""
    id: str | None
    revision: str | None
    """As asked for; the commit that the rows are of, once `present`."""
    sha256: str | None
    size_bytes: int | None
    present: bool
    asked: str | None = None
    """The revision that the job names; None is the hub's default."""
    name: str | None = None
    """The data set's configuration."""
    split: str | None = None


def find_model(text: str, *, beside: Path | None, where: str, field: str = "model") -> ModelSource:
    """What `model: text` means.

    Args:
        text: a folder, OWNER/NAME[@REVISION], modelscope:OWNER/NAME[@REVISION] or builtin:NAME.
        beside: folder of the job file, where a relative folder is looked for first; None for
            values of the command line, which are meant from the current folder.
        where: the place to name in an error, e.g. "jobs/x.yaml:4".

    Raises:
        SpecError: neither a folder nor a hub id, or no such built-in model.
    """
    if text.startswith("modelscope:"):
        return _modelscope_model(text, field, where)
    if text.startswith("builtin:"):
        name = text.removeprefix("builtin:")
        if name not in BUILTIN_MODELS:
            known = [f"builtin:{known}" for known in BUILTIN_MODELS]
            raise SpecError(
                [
                    Problem(
                        where,
                        field,
                        "no such built-in model",
                        text,
                        " or ".join(known),
                        nearest(text, known),
                    )
                ]
            )
        folder = cache_folder() / "models" / name
        return ModelSource("builtin", name, None, folder, (folder / "config.json").is_file())
    for place in _places(text, beside):
        if _kind(place) == "folder":
            if _kind(place / "config.json") != "file":
                raise SpecError(
                    [
                        Problem(
                            where,
                            field,
                            "the folder holds no config.json",
                            str(place),
                            "a model in transformers' layout",
                        )
                    ]
                )
            return ModelSource("folder", text, None, _named(place, field, where), True)
    match = HUB_ID.match(text)
    if match and not text.startswith((".", "/", "~")):
        snapshot = _hub_snapshot(match["id"], match["revision"] or "main")
        # a snapshot is named by its commit, which is what the run was trained on
        revision = snapshot.name if snapshot else match["revision"]
        return ModelSource("hub", match["id"], revision, snapshot, snapshot is not None)
    tried = _places(text, beside)
    near = nearest(tried[-1].name, _names(tried[-1].parent, folders=True))
    raise SpecError(
        [
            Problem(
                where,
                field,
                "no such folder, and not a hub id",
                text,
                "a folder, OWNER/NAME[@REVISION], modelscope:OWNER/NAME or "
                "builtin:smollm2-135m-instruct",
                str(tried[-1].parent / near) if near else None,
            )
        ]
    )


def find_data(
    text: str,
    *,
    field: str,
    beside: Path | None,
    where: str,
    name: str | None = None,
    split: str = "train",
) -> DataSource:
    """What `data.train: text` means; rows that are absent give a source with present=False.

    Args:
        text: a file, hub:OWNER/NAME[@REVISION] or modelscope:OWNER/NAME[@REVISION].
        name: configuration of a hub's data set; None is its default.
        split: the split of a hub's data set that is meant.

    Raises:
        SpecError: a file of no known kind, a folder, or a malformed hub id.
    """
    if text.startswith(("hub:", "modelscope:")):
        hub: HubKind = "hub" if text.startswith("hub:") else "modelscope"
        match = HUB_ID.match(text.partition(":")[2])
        if not match:
            raise SpecError(
                [
                    Problem(
                        where,
                        field,
                        "is not a hub data set",
                        text,
                        f"{hub}:OWNER/NAME or {hub}:OWNER/NAME@REVISION",
                    )
                ]
            )
        return fetched_rows(hub, match["id"], match["revision"], name, split)
    places = _places(text, beside)
    path = next((place for place in places if _kind(place) != "none"), places[0])
    if _kind(path) == "folder":
        raise SpecError(
            [
                Problem(
                    where,
                    field,
                    "is a folder, not a file",
                    text,
                    "a file: " + ", ".join(DATA_SUFFIXES),
                )
            ]
        )
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise SpecError(
            [
                Problem(
                    where,
                    field,
                    f"files of kind {path.suffix or 'none'!r} are not read",
                    text,
                    "a file: " + ", ".join(DATA_SUFFIXES),
                )
            ]
        )
    if _kind(path) != "file":
        return DataSource("file", path.absolute(), None, None, None, None, False)
    place = _named(path, field, where)
    return DataSource("file", place, None, None, file_sha256(path), path.stat().st_size, True)


def missing_data(source: DataSource, text: str, *, field: str, where: str) -> SpecError:
    """The refusal for a data file that is not on this machine, with the nearest one that is."""
    path = source.path or Path(text)
    near = nearest(path.name, _names(path.parent, folders=False))
    return SpecError(
        [
            Problem(
                where,
                field,
                "no such file on this machine",
                text,
                f"a file; looked for {path}",
                str(path.parent / near) if near else None,
            )
        ]
    )


def _places(text: str, beside: Path | None) -> list[Path]:
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # ~NAME of no user here
        path = path.expanduser()
    if path.is_absolute():
        return [path]
    return [path.absolute()] if beside is None else [beside / path, path.absolute()]


def _named(path: Path, field: str, where: str) -> Path:
    """The resolved path, which has to be text that plan.yaml and launch.sh can hold."""
    resolved = path.resolve()
    try:
        str(resolved).encode()
    except UnicodeEncodeError:
        problem = "is at a path that is not UTF-8"
        raise SpecError([Problem(where, field, problem, ascii(str(resolved)))]) from None
    return resolved


def _names(folder: Path, *, folders: bool) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir() if entry.is_dir() == folders]
    except (OSError, ValueError):
        return []


def _kind(path: Path) -> Literal["file", "folder", "none"]:
    """What lies at `path`; a text that can't be a path (too long, NUL) names nothing.

    Raises PermissionError where a folder on the way can't be looked into.
    """
    try:
        mode = path.stat().st_mode
    except PermissionError:
        raise
    except (OSError, ValueError):
        return "none"
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "none"


def fetched_rows(
    kind: HubKind,
    identity: str,
    revision: str | None,
    name: str | None,
    split: str,
) -> DataSource:
    """The rows of a hub's data set, present where `runner fetch` has brought them to the cache.

    Its record, beside the Parquet file, is trusted for the hash as long as the size agrees: the
    engine hashes the file once more when it reads it.
    """
    path = rows_file(kind, identity, revision, name, split)
    record = _record(path.with_suffix(".json"))
    size = _size(path)
    sha256 = record.get("sha256")
    here = isinstance(sha256, str) and size is not None and size == record.get("size_bytes")
    return DataSource(
        kind,
        path if here else None,
        identity,
        str(record.get("revision") or revision) if here else revision,
        sha256 if here else None,
        size if here else None,
        here,
        asked=revision,
        name=name,
        split=split,
    )


def rows_file(kind: str, identity: str, revision: str | None, name: str | None, split: str) -> Path:
    """Where the rows of a hub's data set lie once fetched; what is asked for decides it."""
    owner, _, dataset = identity.partition("/")
    default = "main" if kind == "hub" else "master"
    parts = (owner, f"{dataset}@{revision or default}", name or "default", split)
    quoted = "--".join(urllib.parse.quote(part, safe="@") for part in parts)
    return cache_folder() / "data" / f"{kind}--{quoted}.parquet"


def modelscope_folder(identity: str, revision: str | None) -> Path:
    """Where a model from ModelScope lies once fetched."""
    name = identity.replace("/", "--")
    rest = urllib.parse.quote(revision or "master", safe="")
    return cache_folder() / "modelscope" / "models" / name / rest


def offline_switch() -> str | None:
    """The variable that forbids the network, as NAME=VALUE; None where none does.

    Read as huggingface_hub reads it. Whoever sets one of the hub's means the network, so that
    they count for ModelScope too, which has none.
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        value = os.environ.get(name, "")
        if value.upper() in ("1", "ON", "YES", "TRUE"):
            return f"{name}={value}"
    return None


def _modelscope_model(text: str, field: str, where: str) -> ModelSource:
    match = HUB_ID.match(text.removeprefix("modelscope:"))
    if not match:
        expected = "modelscope:OWNER/NAME or modelscope:OWNER/NAME@REVISION"
        problem = "is not a model on ModelScope"
        raise SpecError([Problem(where, field, problem, text, expected)])
    folder = modelscope_folder(match["id"], match["revision"])
    record = _record(folder / MANIFEST)
    files = record.get("files")
    here = isinstance(files, list) and all(
        isinstance(file, dict) and _size(folder / str(file.get("path"))) == file.get("size_bytes")
        for file in files
    )
    revision = str(record.get("revision")) if here else match["revision"]
    return ModelSource("modelscope", match["id"], revision, folder, here)


def _record(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def _hub_snapshot(repository: str, revision: str) -> Path | None:
    """The snapshot folder of a hub model in the local cache, where config and weights are there.

    Layout of huggingface_hub's cache: hub/models--OWNER--NAME/{refs/REVISION,snapshots/COMMIT}.
    Read here rather than through huggingface_hub, whose import alone costs more than `render`.
    """
    folder = hub_cache() / ("models--" + repository.replace("/", "--"))
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if whole_weights(snapshot) else None


def whole_weights(folder: Path) -> bool:
    """Whether config.json and all files of the weights lie in `folder`.

    A download that was cut short leaves some of the files that the index names.
    """
    if not (folder / "config.json").is_file():
        return False
    if (folder / "model.safetensors").is_file():
        return True
    if (folder / INDEX).is_file():
        placed = _record(folder / INDEX).get("weight_map")
        names = set(placed.values()) if isinstance(placed, dict) else set()
        return bool(names) and all((folder / str(name)).is_file() for name in names)
    return any(file.is_file() for file in folder.glob("*.safetensors"))
