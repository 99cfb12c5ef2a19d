"""Files that outlive a process: written whole (temporary + fsync + rename) or appended by the line.

Imports only the standard library. Every other module writes its records through here; those in a
run's folder by runner.shared_folder, which follows no link.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(staged: Path, final: Path, aside: Path) -> None:
    """Rename a finished folder to its place; what stands there gives way by `aside`, then goes.

    A kill between the two renames leaves the older one at `aside` (runner.unfinished puts it back).
    Raises OSError.
    """
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)  # left by a kill between these lines
        final.rename(aside)
        staged.rename(final)
        shutil.rmtree(aside)
    else:
        staged.rename(final)
    fsync_folder(final.parent)


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


def read_json(path: Path) -> Any | None:
    """The JSON document at `path`, or None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def newer(record: Any, known: int) -> str | None:
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

    def write(self, record: dict[str, Any]) -> None:
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


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file; a torn last line (a kill in mid-write) is passed over.

    None where it can't be read.
    """
    try:
        stream = path.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with stream:
        for line in stream:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def last_jsonl(path: Path, having: str | None = None) -> dict[str, Any] | None:
    """The last whole record of a JSONL file, of those with the key `having` where it is given.

    Read from the last 64 KiB; None where there is none.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 64 * 1024))
            tail = stream.read().splitlines()
    except OSError:
        return None
    for line in reversed(tail):
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and (having is None or having in record):
                return record
    return None
