"""The archive itself: a POSIX tar of plain files, written the same each time, read strictly.

Standard library only. Any tar program reads what is written here. What is read here is only that:
headers, names and sizes of plain files. Python's own reader follows whatever a header asks for
(links, devices, sparse files, records of any size that it takes into memory), which has to be
forbidden case by case; here the rest does not exist.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512
RECORD = 20 * BLOCK
"""tar pads its end to this."""
_TIME = 0
_MAX_PAX_BYTES = 16 << 10
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"S": "a sparse file",
}


class BadArchive(Exception):
    """It is no archive that was written here, or is damaged; the message names the place."""


class Source(Protocol):
    """Where bytes come from."""

    def read(self, size: int, /) -> bytes: ...


class Counted:
    """A source that knows how much was read of it."""

    def __init__(self, source: Source) -> None:
        self._source, self.bytes_read = source, 0

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        block = self._source.read(size)
        self.bytes_read += len(block)
        return block


@dataclass(frozen=True)
class Header:
    """What is said of the file that follows."""

    name: str
    size_bytes: int


def header(name: str, size_bytes: int, *, executable: bool) -> bytes:
    """The header of a file: nobody's, of no time."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size_bytes, _TIME
    info.mode = 0o755 if executable else 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size_bytes: int) -> bytes:
    """What follows a file of that size, up to the next block."""
    return bytes(-size_bytes % BLOCK)


def ending(written_bytes: int) -> bytes:
    """What ends an archive of so many bytes."""
    return bytes(2 * BLOCK + -(written_bytes + 2 * BLOCK) % RECORD)


def read_exactly(source: Source, size: int, what: str) -> bytes:
    """So many bytes. Raises BadArchive where there are fewer."""
    found = bytearray()
    while len(found) < size:
        block = source.read(size - len(found))
        if not block:
            raise BadArchive(f"it ends in {what}: it was cut short")
        found += block
    return bytes(found)


def next_header(source: Source, after: str) -> Header | None:
    """The next file's header; None at the end of the archive.

    `after` is what was read before it, for the message. Raises BadArchive.
    """
    long_name: str | None = None
    long_size: int | None = None
    while True:
        block = read_exactly(source, BLOCK, f"what follows {after}")
        if not any(block):
            if long_name is not None or long_size is not None:
                raise BadArchive(f"a header without a file follows {after}")
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
            if block[148:156] != b"%06o\0 " % total:  # tarfile reads it loosely
                raise tarfile.HeaderError("bad checksum")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
            raise BadArchive(f"the header after {after} is damaged ({error})") from None
        if info.type == tarfile.XHDTYPE:
            if long_name is not None or long_size is not None:
                raise BadArchive(f"two extended headers follow {after}")
            if not 0 < info.size <= _MAX_PAX_BYTES:
                raise BadArchive(f"an extended header of {info.size} bytes follows {after}")
            said = dict(_records(read_exactly(source, info.size, f"a header after {after}"), after))
            require_zeros(read_exactly(source, len(padding(info.size)), "a header"), after)
            long_name = said.get("path")
            if "size" in said:
                if not said["size"].isdecimal() or len(said["size"]) > 18:
                    raise BadArchive(f"the header after {after} has no size")
                long_size = int(said["size"])
            continue
        name = long_name if long_name is not None else info.name
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = _KINDS.get(info.type, f"of kind {info.type!r}")
            raise BadArchive(f"{name!a} is {kind}; a bundle holds plain files only")
        size = long_size if long_size is not None else info.size
        if size < 0:
            raise BadArchive(f"{name!a} has a size below 0")
        return Header(name, size)


def require_zeros(block: bytes, after: str) -> None:
    """Raises BadArchive where something stands in what only fills up."""
    if any(block):
        raise BadArchive(f"something follows {after} that belongs to no file")


def require_end(source: Counted, after: str) -> None:
    """What follows the first block of zeros is zeros, to the end of a record. Raises BadArchive."""
    rest = read_exactly(source, BLOCK, "its end")
    rest += read_exactly(source, -source.bytes_read % RECORD, "its end")
    if any(rest) or source.read(1):
        raise BadArchive(f"something follows the end, after {after}")


def _records(content: bytes, after: str) -> Iterator[tuple[str, str]]:
    """`LENGTH KEY=VALUE LF` of an extended header; keys other than name and size are refused."""
    bad = BadArchive(f"the extended header after {after} is damaged")
    while content:
        length, space, _ = content[:24].partition(b" ")
        if not space or not length.isdigit() or not len(length) < int(length) <= len(content):
            raise bad
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise bad
        try:
            name, text = key.decode(), value[:-1].decode()
        except UnicodeDecodeError:
            raise bad from None
        if name not in ("path", "size"):
            raise BadArchive(f"the header after {after} asks for {name!a}")
        yield name, text
