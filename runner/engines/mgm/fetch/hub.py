"""Weights of the MGM toolkit: from the hub's cache to a folder of the name the toolkit needs.

The toolkit picks classes by the words in a path ("gemma", "openai"), which a snapshot of the hub's
cache lacks. Imports huggingface_hub through runner.fetch.hub.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from runner.common import durable
from runner.common.caches import file_sha256
from runner.common.errors import RefusedError
from runner.common.hub_address import DEFAULT_ENDPOINT
from runner.engines.mgm.fetch.place import install, making, require_free
from runner.engines.mgm.fetch.record import new_record
from runner.engines.mgm.sources import MgmSource
from runner.fetch import hub
from runner.fetch.fetched import require_room
from runner.fetch.files import RemoteFile, combined_sha256
from runner.fetch.refusals import endpoint
from runner.plans.sources import INDEX


def fetch_hub(
    source: MgmSource, base: Path, *, quiet: bool, say: Callable[[str], None]
) -> tuple[dict[str, object], int]:
    """The record of `source`, now in its place, and the bytes that came over the network.

    Every file is hashed in its place once more: it may have lain in the hub's cache for long.

    Raises:
        RefusedError: the repository lacks a file, states no hash of one, or sends another content;
            too little room; something else lies in its place.
        Exception: of huggingface_hub or its HTTP client.
    """
    target = base / source.target
    require_free(target, source.field or "FIELD")
    found = hub.look_up("model", source.where, source.revision)
    files = chosen(source, found.files, found.what)
    say(f"{found.what} -> {target}")
    came = hub.bring(found, files, quiet=quiet, say=say)
    target.parent.mkdir(parents=True, exist_ok=True)
    if found.folder.stat().st_dev != target.parent.stat().st_dev:  # copies, not links
        require_room(source.name, sum(file.size_bytes or 0 for file in files), target.parent)
    with making(target) as made:
        wrong = _place(found, files, made, say)
        if wrong:
            say(f"{wrong[0].path} in the hub's cache is damaged; it is dropped and fetched again")
            for file in wrong:
                pointer = found.snapshot / file.path
                pointer.resolve().unlink()
                pointer.unlink(missing_ok=True)
                (made / file.path).unlink()
            came += hub.bring(found, wrong, quiet=quiet, say=say)
            if wrong := _place(found, wrong, made, say):
                raise RefusedError(
                    f"{wrong[0].path} of {found.what} is not what the hub states, again",
                    "nothing of it was placed; look at the disk of the hub's cache (HF_HOME)",
                )
        _require_shards(made, files, found.what)
        listed = [
            {"path": file.path, "size_bytes": size, "sha256": file_sha256(made / file.path)}
            for file in files
            for size in ((made / file.path).stat().st_size,)
        ]
        large = sum(file.sha256 is not None for file in files)
        record = new_record(
            source,
            f"{endpoint('hub')}/{source.where}",
            size_bytes=sum(int(str(file["size_bytes"])) for file in listed),
            sha256=combined_sha256((str(file["path"]), str(file["sha256"])) for file in listed),
            verified=[
                f"sha256 of its large files ({large}) and git's hash of its small ones "
                f"({len(files) - large}), as {endpoint('hub')} states them for commit "
                f"{found.commit[:7]}"
            ],
            authenticated=endpoint("hub") == DEFAULT_ENDPOINT,
            revision=found.commit,
            files=listed,
        )
        install(made, target, record)
    return record, came


def chosen(source: MgmSource, files: list[RemoteFile], what: str) -> list[RemoteFile]:
    """The files of the table, as the hub lists them, small ones first.

    Raises RefusedError where the repository lacks one, or states no hash of it.
    """
    there = {file.path: file for file in files}
    if lacking := [path for path in source.files if path not in there]:
        raise RefusedError(
            f"{what} has no {', '.join(lacking)}",
            "look at its page on the hub: it may have been changed; --set "
            f"{source.field}=FOLDER takes a copy of your own",
        )
    picked = [there[path] for path in source.files]
    for file in picked:
        if file.sha256 is None and file.git_sha1 is None:
            raise RefusedError(
                f"{what} states no hash of {file.path}, so that it can't be verified",
                "unset HF_ENDPOINT, or name a mirror there that states them",
            )
    return sorted(picked, key=lambda file: file.size_bytes or 0)


def _place(
    found: hub.Repository, files: list[RemoteFile], made: Path, say: Callable[[str], None]
) -> list[RemoteFile]:
    """Put files into `made`, as links where the disk is the same; those that are not as stated."""
    wrong = []
    for file in files:
        place = made / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy((found.snapshot / file.path).resolve(), place)
        if (file.size_bytes or 0) > 1 << 30:
            say(f"  {file.path}  checking its sha256")
        if not _is_stated(place, file):
            wrong.append(file)
    return wrong


def _link_or_copy(content: Path, place: Path) -> None:
    """A hard link, which stays when the hub's cache is cleared, or a copy on another disk."""
    try:
        os.link(content, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(content, place)


def _is_stated(path: Path, file: RemoteFile) -> bool:
    size = path.stat().st_size
    if file.size_bytes not in (None, size):
        return False
    if file.sha256 is not None:
        return file_sha256(path) == file.sha256
    start = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    start.update(path.read_bytes())
    return start.hexdigest() == file.git_sha1


def _require_shards(made: Path, files: list[RemoteFile], what: str) -> None:
    """All that the index of the weights names is among what came."""
    index = durable.read_json(made / INDEX)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    named = {str(name) for name in placed.values()} if isinstance(placed, dict) else set()
    if lacking := sorted(named - {file.path for file in files}):
        raise RefusedError(
            f"{INDEX} of {what} names {lacking[0]}, which runner's table of sources does not",
            "the repository was changed since; runner has to be brought up to date",
        )
