"""A bundle back into a folder: every byte checked, whole or not at all. It may come from anyone.

Standard library, runner.durable and this package. The index, first in the archive, says which files
come in which order, and how large; each has to be just that, so that there is nothing to decide
about what else an archive could hold. Files are made new, in a hidden folder that is renamed at the
end.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from runner import durable
from runner.bundle import tar
from runner.bundle.index import BESIDE, COPY_AGAIN, MAX_INDEX_BYTES, NAME, Index, Member, parse
from runner.errors import RefusedError, UsageError
from runner.units import format_bytes

_BLOCK = 1 << 20
_HIDDEN = ".unbundling-"
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SPARE_BYTES = 16 << 20
"""Of disk, left beside what is unpacked."""

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
            _sweep(folder.parent)
            hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=folder.parent))
            held = _held(hidden)
            try:
                _unpack_all(stream, index, hidden, progress)
                hidden.chmod(0o777 & ~_umask())
                _rename_new(hidden, folder)
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
            finally:
                os.close(held)
        durable.fsync_folder(folder.parent)
    except BaseException as error:
        for each in made:  # deepest first
            with contextlib.suppress(OSError):
                each.rmdir()
        if isinstance(error, OSError):
            raise RefusedError(
                f"{path} can't be unpacked as {folder}: {error.strerror or error}",
                "nothing was left of it",
            ) from None
        raise
    return index


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
            raise tar.BadArchive(f"{found.name!a} stands where its index has {member.path}")
        if found.size_bytes != member.size_bytes:
            raise tar.BadArchive(
                f"{member.path} claims {found.size_bytes} bytes, its index says {member.size_bytes}"
            )
        place = folder / member.path
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
    durable.write_bytes(folder / BESIDE, index.content())
    _settle(index, folder)


def _copy(stream: tar.Counted, member: Member, place: Path) -> Iterator[int]:
    """Write one file; yields the sizes of its blocks. Raises BadArchive."""
    digest, left = hashlib.sha256(), member.size_bytes
    mode = 0o777 if member.executable else 0o666
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(place, flags, mode), "wb") as file:
        while left:
            block = stream.read(min(left, _BLOCK))
            if not block:
                raise tar.BadArchive(f"it ends in {member.path}: it was cut short")
            digest.update(block)
            file.write(block)
            left -= len(block)
            yield len(block)
    if digest.hexdigest() != member.sha256:
        raise tar.BadArchive(
            f"{member.path} is damaged: expected sha256 {member.sha256}, found {digest.hexdigest()}"
        )


def _settle(index: Index, folder: Path) -> None:
    """Have the disk hold it all before the rename: at the end, when most of it is there already."""
    for member in index.members:
        descriptor = os.open(folder / member.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for root, _, _ in os.walk(folder):
        durable.fsync_folder(Path(root))


def _held(folder: Path) -> int:
    """A lock on a folder while the descriptor is open. Raises OSError where another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(folder: Path) -> None:
    """Remove what an unbundling that was killed has left: a hidden folder that nobody holds."""
    for left in folder.glob(f"{_HIDDEN}*"):
        with contextlib.suppress(OSError):
            held = _held(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)


def _require_room(index: Index, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    needed = index.size_bytes + _SPARE_BYTES
    if needed > free:
        raise RefusedError(
            f"it holds {format_bytes(index.size_bytes)}, and {folder} has {format_bytes(free)}",
            "name a folder on a larger disk; nothing was unpacked",
        )


def _rename_new(hidden: Path, folder: Path) -> None:
    """A rename that replaces nothing, not even an empty folder that appeared meanwhile."""
    if folder.exists():
        raise UsageError(f"{folder} is there already", "name a new folder, or remove that one")
    hidden.rename(folder)


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
