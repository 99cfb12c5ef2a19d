"""Models and data files from the Hugging Face hub, or the mirror in HF_ENDPOINT, to its cache.

What lies in the cache afterwards is what huggingface_hub would have put there: blobs named by
their hash, snapshots of links to them, refs. Imports huggingface_hub.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.common import durable
from runner.common.caches import hub_cache
from runner.common.errors import RefusedError
from runner.fetch.fetched import Fetched, require_room, weights_sha256
from runner.fetch.files import RemoteFile, checked, needed, weights
from runner.fetch.secure import session
from runner.fetch.stream import download, partial_file
from runner.plans.sources import INDEX

API_SECONDS = 15.0
RepoType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Repository:
    """One commit of a repository on the hub."""

    type: RepoType
    id: str
    commit: str
    files: list[RemoteFile]

    @property
    def what(self) -> str:
        return f"{self.id}@{self.commit[:7]}"

    @property
    def folder(self) -> Path:
        """In huggingface_hub's cache."""
        return hub_cache() / f"{self.type}s--{self.id.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit


def fetch_model(
    identity: str,
    revision: str | None,
    *,
    code: bool,
    quiet: bool,
    say: Callable[[str], None],
) -> Fetched:
    """Bring a model to huggingface_hub's cache, at the commit that `revision` now is.

    Configuration, tokenizer and templates come first, the weights last: a folder with whole
    weights is a whole model.

    Raises:
        RefusedError: no safetensors, too little room, or wrong content.
        Exception: of huggingface_hub or its HTTP client (see runner.fetch.refusals).
    """
    found = look_up("model", identity, revision)
    say(f"{identity}@{found.commit[:7]} -> {found.snapshot}")
    small = needed(found.files, code=code)
    if not any(file.path == "config.json" for file in small):
        raise RefusedError(
            f"{found.what} has no config.json: it is no model in transformers' layout",
            "an adapter or a GGUF repository names the model that it was made from on its page",
        )
    if not any(file.path == INDEX for file in small):
        weights(found.files, None, found.what)  # refused before anything is fetched
    came = bring(found, small, quiet=quiet, say=say)
    index = durable.read_json(found.snapshot / INDEX, follow_link=True)
    heavy = weights(found.files, index if isinstance(index, dict) else None, found.what)
    came += bring(found, heavy, quiet=quiet, say=say)
    _name_revision(found, revision or "main")
    size = sum((found.snapshot / file.path).stat().st_size for file in (*small, *heavy))
    return Fetched(found.snapshot, found.commit, size, came, weights_sha256(heavy))


def look_up(
    type_: RepoType, identity: str, revision: str | None, paths: Sequence[str] | None = None
) -> Repository:
    """The commit and its files, or those of `paths` alone (a data set may have a million)."""
    from huggingface_hub import HfApi

    session()
    api = HfApi()
    if type_ == "model":
        info: Any = api.model_info(
            identity, revision=revision, files_metadata=True, timeout=API_SECONDS
        )
        files = [_remote(entry, entry.rfilename, identity) for entry in info.siblings or []]
    else:
        info = api.dataset_info(identity, revision=revision, timeout=API_SECONDS)
        entries = [
            entry
            for some in _batches(list(paths or []), 100)
            for entry in api.get_paths_info(identity, some, repo_type=type_, revision=info.sha)
        ]
        files = [_remote(entry, entry.path, identity) for entry in entries]
    if not re.fullmatch("[0-9a-f]{40,64}", str(info.sha)):
        raise RefusedError(f"the hub names no commit of {identity}, but {str(info.sha)[:80]!r}")
    return Repository(type_, identity, str(info.sha), files)


def bring(
    found: Repository, files: Sequence[RemoteFile], *, quiet: bool, say: Callable[[str], None]
) -> int:
    """Bring files to the snapshot; the bytes that came over the network.

    Raises RefusedError where the disk has too little room, before anything is fetched.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    lacking = [file for file in files if not (found.snapshot / file.path).exists()]
    blobs = found.folder / "blobs"
    missing = 0
    for file in lacking:
        had = _had_bytes(blobs / _blob_name(file))
        missing += max(0, (file.size_bytes or 0) - had)
    require_room(found.what, missing, blobs)
    headers = build_hf_headers(library_name="runner")
    came = 0
    for file in lacking:
        blob = blobs / _blob_name(file)
        if not blob.exists():
            had = _had_bytes(blob)
            url = hf_hub_url(
                found.id,
                file.path,
                repo_type=found.type,
                revision=found.commit,
            )
            download(url, headers, file, blob, quiet=quiet, say=say)
            came += max(0, blob.stat().st_size - had)
        _link(blob, found.snapshot / file.path)
    return came


def _had_bytes(blob: Path) -> int:
    """What of it an earlier fetch left, whole or not."""
    place = blob if blob.exists() else partial_file(blob)
    return place.stat().st_size if place.exists() else 0


def _remote(entry: Any, path: str, what: str) -> RemoteFile:
    lfs = entry.lfs
    sha256 = str(lfs.sha256) if lfs is not None and lfs.sha256 else None
    size = lfs.size if lfs is not None and lfs.size is not None else entry.size
    return checked(RemoteFile(path, size, sha256, None if sha256 else entry.blob_id), what)


def _blob_name(file: RemoteFile) -> str:
    """As huggingface_hub names it, by the file's ETag: its sha256, or git's name for the blob."""
    return file.sha256 or file.git_sha1 or f"unnamed-{file.path.replace('/', '--')}"


def _link(blob: Path, pointer: Path) -> None:
    """A relative link as huggingface_hub makes it; the file itself where links can't be made."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except PermissionError:  # a file system without links
            blob.replace(pointer)


def _name_revision(found: Repository, revision: str) -> None:
    """Note which commit a branch or tag is, as huggingface_hub does."""
    if revision == found.commit:
        return
    reference = found.folder / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(reference, found.commit)


def _batches(items: list[str], size: int) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
