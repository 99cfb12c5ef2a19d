"""A bundle on disk: whole or not at all, the same bytes of the same run.

Standard library, runner.common.durable and this package.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from runner.common import durable
from runner.common.errors import RefusedError, UsageError
from runner.provenance.bundle import tar
from runner.provenance.bundle.contents import Contents
from runner.provenance.bundle.gathering import Item
from runner.provenance.bundle.index import MAX_INDEX_BYTES, NAME

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_GZIP_LEVEL = 6
_BLOCK = 1 << 20

Progress = Callable[[int], None]
"""Called with the bytes of members handled so far."""


@dataclass(frozen=True)
class Written:
    """A bundle in a file."""

    path: Path
    size_bytes: int
    sha256: str


def default_name(contents: Contents) -> str:
    """What a bundle is called: packed, unless weights are most of it, which don't pack."""
    suffix = ".tar" if {"model", "adapter"} & set(contents.index.contains) else ".tar.gz"
    return contents.index.run.replace("/", "-") + suffix


def require_path(path: Path, *, force: bool) -> None:
    """Refuse a path that no bundle can be written to. Raises UsageError."""
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path.name} is of no known kind", f"one of: {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", "--force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")


def write(contents: Contents, path: Path, progress: Progress) -> Written:
    """Write the bundle to `path`; the suffix decides whether it is packed.

    Raises RefusedError where the disk refuses or a file changes meanwhile; then `path` is as it
    was.
    """
    index = contents.index.content()
    if len(index) > MAX_INDEX_BYTES:
        raise RefusedError(
            f"{len(contents.items)} files are too many for one bundle",
            "leave data out of --with, or give the rows' files as archives",
        )
    digest = hashlib.sha256()
    try:
        with durable.whole_file(path) as file:
            hashing = _Hashing(file, digest)
            with _packed(path, hashing) as sink:
                _write_all(contents, index, sink, progress)
            size = hashing.tell()
    except OSError as error:
        raise RefusedError(
            f"{path} can't be written: {error.strerror or error}",
            f"it holds {contents.index.size_bytes / 1e6:.1f} MB before packing; nothing is left of "
            "it",
        ) from None
    return Written(path, size, digest.hexdigest())


def _write_all(contents: Contents, index: bytes, sink: IO[bytes], progress: Progress) -> None:
    written = _put(sink, tar.header(NAME, len(index), executable=False), index)
    written += _put(sink, tar.padding(len(index)))
    done = 0
    for item in contents.items:
        member = item.member
        written += _put(
            sink, tar.header(member.path, member.size_bytes, executable=member.executable)
        )
        for block in _blocks(item):
            written += _put(sink, block)
            done += len(block)
            progress(done)
        written += _put(sink, tar.padding(member.size_bytes))
    _put(sink, tar.ending(written))


def _blocks(item: Item) -> Iterator[bytes]:
    """The file's content, known to be what the index says. Raises RefusedError where it is not."""
    member, digest, left = item.member, hashlib.sha256(), item.member.size_bytes
    with io.BytesIO(item.content) if item.content is not None else _opened(item.source) as stream:
        while left and (block := stream.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
            yield block
    if left or digest.hexdigest() != member.sha256:
        raise RefusedError(
            f"{item.source} was changed while it was bundled", "the same command again"
        )


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise RefusedError(f"{path} can't be read: {error.strerror}") from None


def _put(sink: IO[bytes], *blocks: bytes) -> int:
    for block in blocks:
        sink.write(block)
    return sum(map(len, blocks))


class _Hashing(io.RawIOBase):
    """A stream that hashes and counts what goes through it."""

    def __init__(self, stream: IO[bytes], digest: Any) -> None:
        self._stream, self._digest, self._size = stream, digest, 0

    def writable(self) -> bool:
        return True

    def write(self, block: Any, /) -> int:
        self._digest.update(block)
        self._size += len(block)
        self._stream.write(block)
        return len(block)

    def tell(self) -> int:
        return self._size


@contextlib.contextmanager
def _packed(path: Path, sink: _Hashing) -> Iterator[Any]:
    if path.name.endswith((".gz", ".tgz")):
        # no name and time in the header: the same run gives the same file
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, sink, mtime=0) as stream:
            yield stream
    else:
        yield sink
