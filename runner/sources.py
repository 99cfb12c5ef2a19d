"""Where a job's weights and rows come from, and whether they are on this machine.

Standard library only: reads folders, files and the hub's cache layout; downloads nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runner.errors import Problem, SpecError, nearest

HUB_ID = re.compile(r"^(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?$")
BUILTIN_MODELS = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class ModelSource:
    """A job's weights: what was asked for and the folder they lie in, if any."""

    kind: Literal["folder", "hub", "builtin"]
    id: str
    revision: str | None
    folder: Path | None
    """Where the weights are, or (builtin) will be; None for a hub id that is not in the cache."""
    present: bool
    """All of it is on this machine."""


@dataclass(frozen=True)
class DataSource:
    """A job's rows: a file with its content hash, or a hub data set."""

    kind: Literal["file", "hub"]
    path: Path | None
    id: str | None
    revision: str | None
    sha256: str | None
    size_bytes: int | None
    present: bool


def cache_folder() -> Path:
    """The user's cache for models that runner makes: $RUNNER_CACHE, else ~/.cache/runner."""
    if given := os.environ.get("RUNNER_CACHE"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "runner"


def find_model(text: str, *, beside: Path | None, where: str) -> ModelSource:
    """What `model: text` means.

    Args:
        text: a folder, OWNER/NAME[@REVISION], or builtin:NAME.
        beside: folder of the job file, where a relative folder is looked for first; None for
            values of the command line, which are meant from the current folder.
        where: the place to name in an error, e.g. "jobs/x.yaml:4".

    Raises:
        SpecError: neither a folder nor a hub id, or no such built-in model.
    """
    if text.startswith("builtin:"):
        name = text.removeprefix("builtin:")
        if name not in BUILTIN_MODELS:
            known = [f"builtin:{known}" for known in BUILTIN_MODELS]
            raise SpecError(
                [
                    Problem(
                        where,
                        "model",
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
                            "model",
                            "the folder holds no config.json",
                            str(place),
                            "a model in transformers' layout",
                        )
                    ]
                )
            return ModelSource("folder", text, None, _named(place, "model", where), True)
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
                "model",
                "no such folder, and not a hub id",
                text,
                "a folder, OWNER/NAME[@REVISION], or builtin:smollm2-135m-instruct",
                str(tried[-1].parent / near) if near else None,
            )
        ]
    )


def find_data(text: str, *, field: str, beside: Path | None, where: str) -> DataSource:
    """What `data.train: text` means; a file that is absent gives a source with present=False.

    Raises:
        SpecError: a file of no known kind, a folder, or a malformed hub id.
    """
    if text.startswith("hub:"):
        match = HUB_ID.match(text.removeprefix("hub:"))
        if not match:
            raise SpecError(
                [
                    Problem(
                        where,
                        field,
                        "is not a hub data set",
                        text,
                        "hub:OWNER/NAME or hub:OWNER/NAME@REVISION",
                    )
                ]
            )
        # whether the hub's cache holds it is for `datasets` to say, which is too slow to ask here
        return DataSource("hub", None, match["id"], match["revision"], None, None, False)
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


def file_sha256(path: Path) -> str:
    """Content hash of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
        problem = "lies at a path that is not UTF-8"
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


def _hub_snapshot(repository: str, revision: str) -> Path | None:
    """The snapshot folder of a hub model in the local cache, where config and weights are there.

    Layout of huggingface_hub's cache: hub/models--OWNER--NAME/{refs/REVISION,snapshots/COMMIT}.
    Read here rather than through huggingface_hub, whose import alone costs more than `render`.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = hub / ("models--" + repository.replace("/", "--"))
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if (snapshot / "config.json").exists() and any(snapshot.glob("*.safetensors")):
        return snapshot
    return None
