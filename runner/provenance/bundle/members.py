"""What a file of a bundle may be called, and what becomes of it when the bundle is unpacked.

Pure; standard library, and the list of pickles that fetching leaves out. Whoever made a bundle
chose its names: a name that is on no list here is refused, so that a bundle can't plant anything
that another command would start, resume from, take for an outcome, or use to find a process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from runner.fetch.files import PICKLES

INPUTS = "inputs"
"""The folder of a bundle, and of the run that comes of it, in which inputs lie."""
SCRIPT = "script"
"""The input that a plan may start by itself: the one file that may be executable."""
MAX_RECORD_BYTES = 16 << 20
"""Of a record that commands read whole."""
_RECORDS = frozenset(
    (
        *("manifest.json", "plan.yaml", "sources.json", "job.yaml", "project.diff"),
        *("metrics.jsonl", "memory.jsonl", "events.jsonl", "data.json"),
        *("prediction.json", "advice.json", "checkpoints/best.json"),
        *("engine/failure.json", "engine/result.json", "engine/stack.json"),
        *("accelerate.yaml", "deepspeed.json", "zero2_offload.json", "mgm/plan.json"),
        "projector.safetensors",
    )
)
_NAMED = re.compile(
    r"images(-[^/]+)?\.sha256|row-hashes/[^/]+(/[^/]+)?|logs/[^/]+\.log"
    r"|phases/[^/]+/(data\.json|projector\.safetensors)|attempts/[0-9]{1,6}/plan\.yaml"
)
_LEFT_OUT = re.compile(
    r"(attempts/[0-9]{1,6}/)?(launch\.sh|termination\.json)|engine/rank-[0-9]{1,6}\.json"
    r"|mgm/[a-z_]+\.py|container\.json|(adapter|model)/training_args\.bin"
)
_WEIGHTS = re.compile(r"(adapter|model|training_dirs/[^/]+)/(.+)")
_MODELS = ("model", "vision.model", "model_name_or_path", "vision_tower", "vision_tower_aux")
"""Inputs that are models, of which the manifest lists each file."""
_COMPILED = (".pyc", ".pyo", ".so", ".sh")


def is_left_out(path: str) -> bool:
    """Whether earlier runners put it into a bundle, and no run that came from elsewhere gets it.

    What starts, ends or finds a run is this machine's own; an outcome is told by the manifest.
    """
    return _LEFT_OUT.fullmatch(path) is not None


def is_taken(path: str) -> bool:
    """Whether a bundle may hold a file of this name, by the name alone."""
    head, _, rest = path.partition("/")
    return (
        path in _RECORDS
        or _NAMED.fullmatch(path) is not None
        or (head in (INPUTS, "output") and bool(rest))
        or (_WEIGHTS.fullmatch(path) is not None and not is_left_out(path))
    )


def member_problem(path: str, size_bytes: int) -> str | None:
    """Why a file can't be in a bundle; None where it can, or is left out in peace."""
    if is_left_out(path):
        return None
    if not is_taken(path):
        return "is nothing that a bundle holds"
    if size_bytes > MAX_RECORD_BYTES and path.endswith((".json", ".yaml")) and is_record(path):
        return f"claims {size_bytes} bytes, and may have {MAX_RECORD_BYTES}"
    return code_in_weights(path)


def is_record(path: str) -> bool:
    """Whether it is one of a run's own records, and no input or result."""
    return path in _RECORDS or _NAMED.fullmatch(path) is not None


def code_in_weights(path: str) -> str | None:
    """Why a file can't lie in a folder of trained weights; Python is looked at in `unlisted`."""
    suffix = PurePosixPath(path).suffix.lower()
    if _WEIGHTS.fullmatch(path) is None:
        return None
    if suffix in PICKLES:
        return "is a pickle, which runs what its author likes; weights come as safetensors"
    return "is code, and no weights" if suffix in _COMPILED else None


def place_problem(path: str) -> str | None:
    """Why an input can't be said to lie there."""
    head, _, rest = path.partition("/")
    return None if head == INPUTS and rest else f"is not in {INPUTS}/, where inputs are"


def unlisted(
    paths: Iterable[str], models: Mapping[str, str], manifest: Mapping[str, object]
) -> Iterator[str]:
    """Code and pickles among model files that the manifest does not list as the model's.

    Args:
        paths: the members that are taken.
        models: folder in the bundle -> the input it is, of inputs that are models.
        manifest: the bundle's own, as it was read; its values are of any type.
    """
    listed = _listed(manifest)
    trusted = _trusts_code(manifest)
    for path in paths:
        suffix = PurePosixPath(path).suffix.lower()
        found = _WEIGHTS.fullmatch(path)
        if found is not None and suffix == ".py":
            names = {f"{what}/{found[2]}" for what in _MODELS}
            if not trusted and not names & listed:
                yield path
        elif suffix in (".py", *PICKLES, *_COMPILED):
            for folder, what in models.items():
                inside = path.removeprefix(f"{folder}/")
                if inside != path and f"{what}/{inside}" not in listed and what not in listed:
                    yield path


def model_places(places: Mapping[str, str]) -> dict[str, str]:
    """Folder -> input, of those inputs that are models."""
    return {path: what for what, path in places.items() if what in _MODELS}


def runs_itself(manifest: Mapping[str, object]) -> bool:
    """Whether the plan starts its script as a program of its own."""
    plan = manifest.get("plan")
    return (
        isinstance(plan, dict)
        and plan.get("engine") == "script"
        and plan.get("runs_with") == "itself"
    )


def _listed(manifest: Mapping[str, object]) -> set[str]:
    files = manifest.get("files")
    records = files if isinstance(files, list) else []
    named = (each.get("what") for each in records if isinstance(each, dict))
    return {what for what in named if isinstance(what, str)}


def _trusts_code(manifest: Mapping[str, object]) -> bool:
    plan = manifest.get("plan")
    return isinstance(plan, dict) and plan.get("trust_remote_code") is True
