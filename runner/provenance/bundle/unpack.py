"""Unpack a bundle into a folder, completely or not at all, checking every byte.

It may come from anyone.

Standard library, runner.common.durable and this package. The index, first in the archive, says
which files come in which order, and how large; each has to be just that, so that there is nothing
to decide about what else an archive could hold. Files are made new, in a hidden folder that is
renamed at the end. What `members` leaves out is read and checked as all else, and not written.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from runner.common import durable, staged_folder
from runner.common.errors import RefusedError, UsageError
from runner.common.units import format_bytes
from runner.provenance.bundle import members, tar
from runner.provenance.bundle.index import (
    BESIDE,
    COPY_AGAIN,
    MAX_INDEX_BYTES,
    NAME,
    Index,
    Member,
    parse,
)

_BLOCK = 1 << 20
_HIDDEN = ".unbundling-"
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SPARE_BYTES = 16 << 20
"""Of disk, left beside what is unpacked."""
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1

Progress = Callable[[int, int], None]
"""Called with the bytes unpacked so far, and of how many."""


def read_index(path: Path) -> Index:
    """The index of a bundle, and no more of it. Raises UsageError, OSError."""
    with _told(path), _opened(path) as stream:
        return _index(stream, path)


def unpack(path: Path, folder: Path, progress: Progress) -> Index:
    """Unpack the bundle `path` as the new folder `folder`, each file checked by its sha256.

    Raises:
        UsageError: it is damaged, cut short, of a newer runner, holds anything else than its index
            says, or `folder` is there already.
        RefusedError: the disk refuses.

    Nothing is left then.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} is there already", "name a new folder, or remove that one")
    made = [each for each in (folder.parent, *folder.parent.parents) if not each.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _told(path), _opened(path) as stream:
            index = _index(stream, path)
            _require_room(index, folder.parent)
            staged_folder.sweep(folder.parent)
            with staged_folder.staged(folder, existing="refuse", private=True) as hidden:
                _unpack_all(stream, index, hidden, progress)
                hidden.chmod(0o777 & ~_umask())
    except BaseException as error:
        for each in made:  # deepest first
            with contextlib.suppress(OSError):
                each.rmdir()
        if isinstance(error, staged_folder.Taken):  # meanwhile
            taken = f"{folder} is there already"
            raise UsageError(taken, "name a new folder, or remove that one") from None
        if isinstance(error, OSError):
            raise RefusedError(
                f"{path} can't be unpacked as {folder}: {error.strerror or error}",
                "nothing was left of it",
            ) from None
        raise
    return index


def left_out(index: Index) -> list[str]:
    """Its members that no run gets which came from elsewhere, in their order."""
    return [member.path for member in index.members if members.is_left_out(member.path)]


def _taken(index: Index) -> Iterator[Member]:
    return (each for each in index.members if not members.is_left_out(each.path))


def _index(stream: tar.Counted, path: Path) -> Index:
    first = tar.next_header(stream, "the start")
    if first is None or first.name != NAME:
        found = "is empty" if first is None else f"begins with {first.name!a}"
        raise UsageError(f"{path} is no bundle: it {found}, not with {NAME}", _WHAT_IT_IS)
    if first.size_bytes > MAX_INDEX_BYTES:
        raise UsageError(
            f"{path}: {NAME} claims {format_bytes(first.size_bytes)}, and may have "
            f"{format_bytes(MAX_INDEX_BYTES)}",
            "it is no bundle that runner made",
        )
    content = tar.read_exactly(stream, first.size_bytes, NAME)
    tar.require_zeros(tar.read_exactly(stream, len(tar.padding(len(content))), NAME), NAME)
    return parse(content, str(path))


_WHAT_IT_IS = "a bundle is what `runner bundle RUN` writes"


def _unpack_all(stream: tar.Counted, index: Index, folder: Path, progress: Progress) -> None:
    done, after, whole = 0, NAME, index.size_bytes
    for placed in index.places.values():
        if placed.kind == "folder":
            (folder / placed.path).mkdir(parents=True, exist_ok=True)
    for member in index.members:
        found = tar.next_header(stream, after)
        if found is None:
            raise tar.BadArchive(f"it ends after {after}, and {member.path} is missing")
        if found.name != member.path:
            raise tar.BadArchive(f"{found.name!a} is where its index has {member.path}")
        if found.size_bytes != member.size_bytes:
            raise tar.BadArchive(
                f"{member.path} claims {found.size_bytes} bytes, its index says {member.size_bytes}"
            )
        place = None if members.is_left_out(member.path) else folder / member.path
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
        for block in _copy(stream, member, place):
            done += block
            progress(done, whole)
        after = member.path
        tar.require_zeros(
            tar.read_exactly(stream, len(tar.padding(member.size_bytes)), after), after
        )
    extra = tar.next_header(stream, after)
    if extra is not None:
        raise tar.BadArchive(f"{extra.name!a} is in it, and not in its index")
    tar.require_end(stream, after)
    _settle_kinds(index, folder)
    durable.write_bytes(folder / BESIDE, index.content())


def _copy(stream: tar.Counted, member: Member, place: Path | None) -> Iterator[int]:
    """Read one file, and write it to `place`; yields the sizes of its blocks. Raises BadArchive."""
    digest, left = hashlib.sha256(), member.size_bytes
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with contextlib.ExitStack() as stack:
        file = None
        if place is not None:
            file = stack.enter_context(os.fdopen(os.open(place, flags, 0o666), "wb"))
        while left:
            block = stream.read(min(left, _BLOCK))
            if not block:
                raise tar.BadArchive(f"it ends in {member.path}: it was cut short")
            digest.update(block)
            if file is not None:
                file.write(block)
            left -= len(block)
            yield len(block)
    if digest.hexdigest() != member.sha256:
        raise tar.BadArchive(
            f"{member.path} is damaged: expected sha256 {member.sha256}, found {digest.hexdigest()}"
        )


def _settle_kinds(index: Index, folder: Path) -> None:
    """What can be told once the manifest is there: which code is a model's, what is executable.

    Raises BadArchive where code lies among weights, and the manifest does not list it as theirs.
    """
    manifest = _manifest(folder / "manifest.json")
    places = {what: placed.path for what, placed in index.places.items()}
    named = (member.path for member in _taken(index))
    for path in members.unlisted(named, members.model_places(places), manifest):
        raise tar.BadArchive(f"{path} is code, and its manifest does not list it as a model's")
    script = places.get(members.SCRIPT)
    if not members.runs_itself(manifest):
        return
    for member in index.members:
        if member.executable and member.path == script:
            (folder / script).chmod(0o777 & ~_umask())


def _manifest(path: Path) -> dict[str, object]:
    """The bundle's own, as it is; empty where it can't be read as an object."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _require_room(index: Index, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    size = sum(member.size_bytes for member in _taken(index))
    if size + _SPARE_BYTES > free:
        raise RefusedError(
            f"it holds {format_bytes(size)}, and {folder} has {format_bytes(free)}",
            "name a folder on a larger disk; nothing was unpacked",
        )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What is wrong with an archive, as an error that names it."""
    try:
        yield
    except tar.BadArchive as error:
        raise UsageError(f"{path} is damaged, or no bundle: {error}", COPY_AGAIN) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = str(error) or "it was cut short"
        raise UsageError(f"{path} is damaged or cut short: {reason}", COPY_AGAIN) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tar.Counted]:
    """The archive's bytes, unpacked where they are packed. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", _WHAT_IT_IS)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}", _WHAT_IT_IS) from None
    with file:
        start = file.read(4)
        file.seek(0)
        if start == _ZSTD:
            raise UsageError(
                f"{path} is packed with zstd, which runner does not read here", "zstd -d unpacks it"
            )
        if start[:2] == _GZIP:
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield tar.Counted(cast(tar.Source, stream))
        else:
            yield tar.Counted(file)
