"""Write files that outlive a process: whole (temporary + fsync + rename) or appended by the line.

Imports only the standard library. Every other module writes its records through here, and those in
a run's folder through runner.common.shared_folder, which follows no link.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """A stream whose content replaces `path` when the block ends well, whole or not at all.

    For places where this user alone writes; in a run's folder it is SharedFolder's. Raises OSError
    (disk full, no permission); then `path` is as it was and no temporary is left.
    """
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with whole_file_in(parent, path.name, mode=mode) as stream:
            yield stream
    finally:
        os.close(parent)


@contextlib.contextmanager
def whole_file_in(
    parent: int, name: str, *, mode: int = 0o644, make_way: Callable[[], None] | None = None
) -> Iterator[IO[bytes]]:
    """`whole_file` of `name` in the folder that is open as the descriptor `parent`.

    `make_way` clears the name where a folder has it.
    """
    temporary = f".{name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        try:
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError:
            if make_way is None:
                raise
            make_way()
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent)
        raise
    os.fsync(parent)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content`, whole or not at all; raises OSError as whole_file does."""
    with whole_file(path, mode=mode) as stream:
        stream.write(content)


def write_text(path: Path, content: str, *, mode: int = 0o644) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode(), mode=mode)


def write_json(path: Path, record: object) -> None:
    """`write_bytes` for one JSON document, indented, keys as given. NaN is refused (ValueError)."""
    write_text(path, json_text(record))


def json_text(record: object) -> str:
    """One JSON document as `write_json` writes it; NaN is refused (ValueError)."""
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


MAX_JSON_BYTES = 16 << 20
"""Of one record. The largest that runner writes, a manifest, has some hundred KiB."""
MAX_LINE_BYTES = 1 << 20
"""Of one line of a JSONL file; longer ones are passed over. Ours have less than 1 KiB."""
MAX_PASSED_BYTES = 64 << 20
MAX_JSONL_BYTES = 1 << 30
"""Of a JSONL file; what comes after is not read. The guard's line a second fills it in a month."""
SHORTEST_LINE_BYTES = 256
"""A line counts as so many of MAX_JSONL_BYTES at least: 4 million lines of `{}` end it too."""
MAX_DEPTH = 64
"""Of objects in objects in a record. Ours have 8."""
_ENDLESS = re.compile("[0-9]{40}")
MAX_VALUES = 1_000_000
"""In a record: each takes some hundred bytes of memory, whatever it takes in the file."""


def open_record(path: Path, *, follow_link: bool = False) -> io.BufferedReader:
    """A regular file in a folder that somebody else may write to, opened for reading.

    A pipe, a device, a socket, a folder or a link in its place is refused and never waited for. A
    link is followed with `follow_link` alone: for a cache of links that is the user's own.

    Raises OSError, whose strerror says what it is.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags if follow_link else flags | os.O_NOFOLLOW)
    except ValueError:  # a NUL in its name, or a letter that no file name can have
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_link:
            raise OSError(errno.ELOOP, "it is a link, which is not followed", str(path)) from None
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is no regular file", str(path)) from None
        raise
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_record(path: Path, at_most_bytes: int, *, follow_link: bool = False) -> bytes:
    """The content of such a file. Raises OSError, also where it is longer."""
    with open_record(path, follow_link=follow_link) as stream:
        content = stream.read(at_most_bytes + 1)
    if len(content) > at_most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {at_most_bytes:,} bytes", str(path))
    return content


def is_there(path: Path) -> bool:
    """Whether something has this name, be it a link to nothing; False where that can't be seen."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one; False where that can't be seen."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where one may not look


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is none, or can't be listed."""
    try:
        return [folder / name for name in os.listdir(folder)]  # noqa: PTH208 - no Path twice
    except OSError:
        return []


def read_word(path: Path) -> str:
    """A short text in such a file, without space around it; "" where there is none."""
    try:
        return read_record(path, 4096).decode(errors="replace").strip()
    except OSError:
        return ""


def parse_record(text: str) -> object:
    """The JSON value in `text`, of bounded depth, count of values and digits of its whole numbers.

    Raises ValueError where it is no JSON, or beyond the bounds.
    """
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise ValueError("too many values")
    try:
        # asked for only where there may be one: it makes the reading several times slower
        value = json.loads(text, parse_int=_figure if _ENDLESS.search(text) else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _figure(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError("a figure without end")
    return int(digits)


def read_json(path: Path, *, follow_link: bool = False) -> object:
    """The JSON document at `path`, or None where there is none or it is damaged.

    What open_record and parse_record refuse counts as damaged.
    """
    try:
        content = read_record(path, MAX_JSON_BYTES, follow_link=follow_link)
        return parse_record(content.decode())
    except (OSError, ValueError):
        return None


def newer(record: object, known: int) -> str | None:
    """That a newer runner wrote `record`, in words; None where this one can read it."""
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(version, int) and version > known:
        return f"written by a newer runner (schema_version {version}, this one reads {known})"
    return None


class JsonlWriter:
    """Appends one JSON object a line; each line reaches the kernel in one write.

    A torn last line (a kill or a full disk in mid-write) is closed first, so that it takes no
    later record with it.
    """

    def __init__(self, place: Path | int) -> None:
        """`place`: a path where this user alone writes, or a file opened to be read and appended
        to, which is the writer's from now on."""
        if isinstance(place, Path):
            place = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._descriptor = place
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def write(self, record: Mapping[str, object]) -> None:
        """Append `record`. Raises OSError where the disk refuses, ValueError for a NaN."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        written = os.write(self._descriptor, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def lines_in(stream: BinaryIO, at_most_bytes: int = MAX_JSONL_BYTES) -> Iterator[bytes]:
    """The lines of a JSONL file with their ends, the last perhaps without one.

    One of more than MAX_LINE_BYTES is passed over as b"", and after it no more than
    MAX_PASSED_BYTES are read.
    """
    left = at_most_bytes
    while left > 0 and (line := stream.readline(MAX_LINE_BYTES)):
        left -= max(len(line), SHORTEST_LINE_BYTES)
        if line.endswith(b"\n") or len(line) < MAX_LINE_BYTES:
            yield line
            continue
        left = min(left, MAX_PASSED_BYTES)  # nothing of ours is like that: a hole, perhaps
        while left > 0 and (more := stream.readline(MAX_LINE_BYTES)):
            left -= len(more)
            if more.endswith(b"\n"):
                break
        yield b""


def parse_line(line: bytes) -> dict[str, object] | None:
    """The object in a line; None where there is none, or it is damaged."""
    try:
        record = parse_record(line.decode(errors="replace"))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read_jsonl(path: Path, at_most_bytes: int = MAX_JSONL_BYTES) -> Iterator[dict[str, object]]:
    """The records of a JSONL file; a torn last line (a kill in mid-write) is passed over.

    None where it can't be read.
    """
    try:
        stream = open_record(path)
    except OSError:
        return
    with stream:
        for line in lines_in(stream, at_most_bytes):
            record = parse_line(line)
            if record is not None:
                yield record


def last_jsonl(path: Path, having: str | None = None) -> dict[str, object] | None:
    """The last whole record of a JSONL file, of those with the key `having` where it is given.

    Read from the last 64 KiB; None where there is none.
    """
    try:
        with open_record(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 64 * 1024))
            tail = stream.read(64 * 1024).splitlines()
    except OSError:
        return None
    for line in reversed(tail):
        record = parse_line(line)
        if record is not None and (having is None or having in record):
            return record
    return None
