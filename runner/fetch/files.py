"""Which files of a repository are needed, and what is known of each. Pure; standard library."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runner.common.errors import RefusedError
from runner.plans.sources import INDEX

SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "LICENSE*")
"""At the top of a repository: configuration, tokenizer, chat template, index, licence."""
TEMPLATES = "additional_chat_templates/*.jinja"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".tflite", ".npz")
DATA = (".parquet", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository, as its listing states it."""

    path: str
    size_bytes: int | None
    sha256: str | None
    """Of its content; files in git alone have none on the Hugging Face hub."""
    git_sha1: str | None = None
    """Of git's blob: "blob SIZE\\0" and the content."""


def checked(file: RemoteFile, what: str) -> RemoteFile:
    """The file, whose name and hashes name places on this machine's disk.

    Raises RefusedError where they could lead out of the cache: a hub, or who poses as one, is not
    to choose what is written where.
    """
    parts = file.path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and "\0" not in file.path
    hashes = [(file.sha256, 64), (file.git_sha1, 40)]
    if plain and all(h is None or re.fullmatch(f"[0-9a-f]{{{n}}}", h) for h, n in hashes):
        return file
    raise RefusedError(
        f"{what} lists a file whose name or hash is none: {file.path[:80]!r}",
        "look at who answers at the hub's address",
    )


def needed(files: Sequence[RemoteFile], *, code: bool) -> list[RemoteFile]:
    """What transformers loads a model and its tokenizer from, apart from the weights.

    Args:
        code: take the repository's own Python files, for trust_remote_code.
    """

    def wanted(path: str) -> bool:
        if "/" in path:
            return fnmatch.fnmatch(path, TEMPLATES) or (code and path.endswith(".py"))
        return any(fnmatch.fnmatch(path, pattern) for pattern in SMALL) or (
            code and path.endswith(".py")
        )

    return [file for file in files if wanted(file.path)]


def weights(
    files: Sequence[RemoteFile], index: dict[str, object] | None, what: str
) -> list[RemoteFile]:
    """The safetensors files that transformers reads: one, or those that the index names.

    Args:
        index: what INDEX says, where the repository has it.
        what: the model's name for the refusals.

    Raises:
        RefusedError: there are none, or the index names one that is not there.
    """
    top = {file.path: file for file in files if "/" not in file.path}
    if "model.safetensors" in top:
        return [top["model.safetensors"]]
    placed = (index or {}).get("weight_map")
    if isinstance(placed, dict) and placed:
        names = sorted({str(name) for name in placed.values()})
        lacking = [name for name in names if name not in top]
        if lacking:
            raise RefusedError(
                f"{what} is not whole: {INDEX} names {lacking[0]}, which the repository lacks",
                "another revision may have it: OWNER/NAME@REVISION",
            )
        return [top[name] for name in names]
    found = [
        file
        for name, file in sorted(top.items())
        if name.endswith(".safetensors")
        # the same weights in another layout or rounding, and adapters, which are no model
        and not name.startswith(("consolidated", "adapter_"))
        and not name.endswith((".fp16.safetensors", ".bf16.safetensors"))
    ]
    if not found:
        raise RefusedError(*_no_weights([file.path for file in files], what))
    return found


def _no_weights(paths: Iterable[str], what: str) -> tuple[str, str]:
    names = list(paths)
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(OTHER_WEIGHTS)]
    if pickles:
        return (
            f"{what} has its weights as pickles only ({pickles[0]}): loading one runs whatever "
            "program is in it",
            "take a revision or a repository with .safetensors (the hub's refs/pr/N often has "
            "one: OWNER/NAME@refs/pr/N), or convert it on a machine that may run it and "
            "--set model=FOLDER",
        )
    if others:
        return (
            f"{what} has its weights as {others[0]}, which is not trained here",
            "take the repository with the .safetensors files that it was made from",
        )
    return f"{what} holds no weights", "check the name: it may be an adapter or a data set"


def data_files(
    files: Sequence[RemoteFile], card: dict[str, object], name: str | None
) -> list[RemoteFile]:
    """The files of one configuration of a data set, by its card; all data files without one.

    Args:
        card: the YAML head of README.md; empty where there is none.
        name: the configuration; None is the default.
    """
    data = [file for file in files if file.path.lower().endswith(DATA) and _is_data(file.path)]
    configs = card.get("configs")
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        return data
    wanted = name or next(
        (str(c.get("config_name")) for c in configs if c.get("default") is True), "default"
    )
    chosen = [c for c in configs if str(c.get("config_name", "default")) == wanted]
    if not chosen and name is None and len(configs) == 1:
        chosen = configs
    patterns = _patterns(chosen[0].get("data_files")) if chosen else []
    matched = [
        file
        for file in files
        if any(fnmatch.fnmatch(file.path, pattern.removeprefix("./")) for pattern in patterns)
    ]
    return matched or data


def _is_data(path: str) -> bool:
    """Not one of the repository's own notes."""
    return path.rpartition("/")[2] not in ("dataset_infos.json", "configuration.json") and not any(
        part.startswith(".") for part in path.split("/")
    )


def _patterns(said: Any) -> list[str]:
    """`data_files` of a card: a pattern, a list of them, or a list of {split, path}."""
    if isinstance(said, str):
        return [said]
    if isinstance(said, dict):
        return _patterns(said.get("path"))
    return [pattern for part in said for pattern in _patterns(part)] if said else []


def combined_sha256(hashes: Iterable[tuple[str, str]]) -> str:
    """One hash for several files: of the lines "SHA256  PATH", sorted by path (as sha256sum's)."""
    lines = [f"{sha256}  {path}\n" for path, sha256 in sorted(hashes)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
