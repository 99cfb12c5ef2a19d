"""Models and data files from ModelScope to runner's own cache.

Its client (modelscope_hub, which the modelscope package brings) lists, downloads, resumes and
checks; a manifest, written last, says what came. Its own cache layout is not relied on.
"""

from __future__ import annotations

import logging
import os
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.common import durable
from runner.common.caches import cache_folder, file_sha256
from runner.common.errors import RefusedError
from runner.fetch.fetched import Fetched, require_room, weights_sha256
from runner.fetch.files import RemoteFile, checked, combined_sha256, data_files, needed, weights
from runner.fetch.progress import FileProgress
from runner.fetch.secure import check_requests
from runner.plans.sources import INDEX, MANIFEST, modelscope_folder

if TYPE_CHECKING:
    from modelscope_hub import HubApi


def fetch_model(
    identity: str,
    revision: str | None,
    *,
    code: bool,
    quiet: bool,
    say: Callable[[str], None],
) -> Fetched:
    """Bring a model to runner's cache; see runner.fetch.hub.fetch_model.

    Raises:
        RefusedError: the client is not installed, no safetensors, too little room, wrong content.
        Exception: of the client (see runner.fetch.refusals).
    """
    api = make_client()
    folder = modelscope_folder(identity, revision)
    listed = _listing(api, identity, "model", revision)
    what = f"{identity}@{revision or 'master'}"
    say(f"modelscope:{what} -> {folder}")
    small = needed(listed, code=code)
    if not any(file.path == INDEX for file in small):
        weights(listed, None, what)  # refused before anything is fetched
    came = _bring(api, identity, "model", revision, small, folder, quiet=quiet)
    index = durable.read_json(folder / INDEX)
    heavy = weights(listed, index if isinstance(index, dict) else None, what)
    came += _bring(api, identity, "model", revision, heavy, folder, quiet=quiet)
    files = [*small, *heavy]
    named = _write_manifest(folder, identity, revision or "master", files)
    size = sum((folder / file.path).stat().st_size for file in files)
    return Fetched(folder, named, size, came, weights_sha256(heavy))


def fetch_data_files(
    identity: str,
    revision: str | None,
    name: str | None,
    *,
    quiet: bool,
    say: Callable[[str], None],
) -> tuple[Path, str, list[RemoteFile], int]:
    """Bring a data set's files to runner's cache.

    Returns: their folder, the revision's name, the files, and the bytes that came.

    Raises: as fetch_model.
    """
    api = make_client()
    rest = urllib.parse.quote(revision or "master", safe="")
    folder = cache_folder() / "modelscope" / "datasets" / identity.replace("/", "--") / rest
    listed = _listing(api, identity, "dataset", revision)
    say(f"modelscope:{identity}@{revision or 'master'} -> {folder}")
    card = [file for file in listed if file.path == "README.md"]
    came = _bring(api, identity, "dataset", revision, card, folder, quiet=True)
    files = data_files(listed, _card(folder / "README.md") if card else {}, name)
    if not files:
        held = ", ".join(file.path for file in listed[:6]) or "nothing"
        raise RefusedError(
            f"modelscope:{identity} holds no data files that are read here, but {held}",
            "data sets that a script makes are not run; download the rows and name the file",
        )
    came += _bring(api, identity, "dataset", revision, files, folder, quiet=quiet)
    named = _write_manifest(folder, identity, revision or "master", files)
    return folder, named, files, came


def make_client() -> HubApi:
    """ModelScope's client. Raises RefusedError where it is not installed."""
    os.environ.setdefault("MODELSCOPE_LOG_LEVEL", "CRITICAL")
    os.environ.setdefault("TQDM_DISABLE", "1")  # its bars would be drawn over ours
    try:
        from modelscope_hub import HubApi
    except ImportError as error:
        raise RefusedError(
            "fetching from ModelScope needs the `modelscope` package",
            "pip install 'runner[modelscope]'",
        ) from error
    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
    check_requests()
    return HubApi()


def _listing(api: HubApi, identity: str, type_: str, revision: str | None) -> list[RemoteFile]:
    return [
        checked(RemoteFile(file.path, file.size, file.sha256 or None), f"modelscope:{identity}")
        for file in api.list_repo_files(identity, type_, revision=revision)
        if file.type != "tree"
    ]


def _bring(
    api: HubApi,
    identity: str,
    type_: str,
    revision: str | None,
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    quiet: bool,
) -> int:
    """Bring `files`; the bytes of those that were not whole before."""
    lacking = [file for file in files if _size(folder / file.path) != file.size_bytes]
    if not lacking:
        return 0
    missing = sum(file.size_bytes or 0 for file in lacking)
    require_room(f"modelscope:{identity}", missing, folder)

    class Told(FileProgress):  # the client makes one a file: Told(path, bytes)
        def __init__(self, path: str, total_bytes: int) -> None:
            super().__init__(path, total_bytes, quiet=quiet)
            self._most = sizes.get(path)

        def update(self, more: int) -> None:
            super().update(more)
            if self._most is not None and self.bytes > self._most:  # the client itself reads on
                raise RefusedError(
                    f"{self.name} came with another content than ModelScope states: more than "
                    f"{self._most} bytes for {self._most}",
                    "a mirror or a proxy may be at fault: try another, or later",
                )

    sizes = {file.path: file.size_bytes for file in lacking}
    entries = [
        {"Path": f.path, "Size": f.size_bytes, "Sha256": f.sha256, "Type": "blob"} for f in lacking
    ]
    try:
        api.download_repo(
            identity,
            type_,
            revision=revision,
            local_dir=folder,
            cache_dir=cache_folder() / "modelscope",  # its locks lie there
            file_list=entries,
            max_workers=1,
            progress_callbacks=[Told],
        )
    except Exception as error:
        raise _first_failure(error) from error
    return missing


def _first_failure(error: Exception) -> Exception:
    """What failed, out of the client's collection of failures; wrong content is refused."""
    failed = getattr(error, "failed_files", None)
    inner = next(iter(failed.values())) if failed else error
    path = next(iter(failed)) if failed else ""
    if any(kind.__name__ == "FileIntegrityError" for kind in type(inner).__mro__):
        return RefusedError(
            f"{path} came with another content than ModelScope states: {inner}",
            "nothing of it was kept; a mirror or a proxy may be at fault: try another, or later",
        )
    return inner if isinstance(inner, Exception) else error


def _write_manifest(folder: Path, identity: str, revision: str, files: list[RemoteFile]) -> str:
    """Record what lies in `folder`; the revision's name with the content's hash.

    ModelScope names no commit in its listings, and its branches move.
    """
    records = []
    for file in files:
        place = folder / file.path
        records.append(
            {
                "path": file.path,
                "size_bytes": place.stat().st_size,
                "sha256": file.sha256 or file_sha256(place),
            }
        )
    content = combined_sha256((str(r["path"]), str(r["sha256"])) for r in records)
    named = f"{revision}-{content[:12]}"
    durable.write_json(
        folder / MANIFEST,
        {
            "schema_version": 1,
            "source": "modelscope",
            "id": identity,
            "asked": revision,
            "revision": named,
            "sha256": content,
            "files": records,
        },
    )
    return named


def _card(path: Path) -> dict[str, object]:
    """The YAML head of a README.md."""
    import yaml

    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    head = text.removeprefix("---").partition("\n---")[0]
    try:
        card = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
