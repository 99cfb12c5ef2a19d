"""Download one file over HTTP, resume it after a break or a kill, and check it.

Uses huggingface_hub's HTTP session (proxies, authorities). Its own downloads start anew in each
process: their temporary files have random names and are removed (huggingface_hub#4228).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from runner.common import durable, locks
from runner.common.errors import RefusedError
from runner.common.units import format_bytes
from runner.fetch.fetched import SPARE_BYTES
from runner.fetch.files import RemoteFile
from runner.fetch.progress import FileProgress
from runner.fetch.refusals import is_connection_error
from runner.fetch.secure import session

HASH_BLOCK_BYTES = 8 * 1024 * 1024
SOCKET_SECONDS = 30.0
TRIES_WITHOUT_A_BYTE = 5
LONGEST_WAIT_SECONDS = 16.0
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


class _TooMuch(Exception):
    """More came than was stated; the message says how much, in a few words."""


def partial_file(target: Path) -> Path:
    """Where the bytes of `target` gather; a later process continues with them."""
    return target.with_name(f"{target.name}.runner.incomplete")


def download(
    url: str,
    headers: dict[str, str],
    file: RemoteFile,
    target: Path,
    *,
    quiet: bool,
    say: Callable[[str], None],
) -> None:
    """Bring `url` to `target`, whole and with the hash that the listing states, or not at all.

    Raises:
        RefusedError: the content has another hash or more bytes than stated twice, the second time
            from the first byte on; it is larger than the room on the disk; a redirect leaves TLS.
            Nothing of it is kept, and nothing is written past the stated size.
        Exception: the HTTP client's own, where the server refuses or stays away; what came is
            kept for the next time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_file(target)
    with _alone(target.parent / ".runner.lock", say):
        if target.exists():  # by another process, meanwhile
            return
        had = partial.stat().st_size if partial.exists() else 0
        progress = FileProgress(file.path, file.size_bytes, had_bytes=had, quiet=quiet)
        resumed = had > 0
        while True:
            with partial.open("ab") as out:
                problem = _receive(url, headers, file, out, progress)
                out.flush()
                os.fsync(out.fileno())
            problem = problem or _mismatch(partial, file)
            if problem is None:
                break
            partial.unlink()
            if not resumed:
                raise RefusedError(
                    f"{file.path} came with another content than the hub states: {problem}",
                    "nothing of it was kept; a mirror or a proxy may be at fault: try another, "
                    "or later",
                )
            # what lay here may have been what is wrong
            say(f"{file.path}: {problem}; what was here is dropped, and it is fetched whole")
            resumed = False
            progress.update(-progress.bytes)
        partial.replace(target)
        durable.fsync_folder(target.parent)
        progress.end()


@contextlib.contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time; the lock ends with its holder, however that ends."""
    busy = "another runner is fetching into the same folder; waiting for it"
    with locks.locked(path, waiting=lambda: say(busy)):
        yield


def _receive(
    url: str, headers: dict[str, str], file: RemoteFile, out: BinaryIO, progress: FileProgress
) -> str | None:
    """Append to `out` what it lacks, over as many connections as that takes.

    Returns a few words on a server that sends more than was stated, else None.
    """
    idle = 0
    while True:
        before = out.tell()
        if file.size_bytes is not None and before >= file.size_bytes > 0:
            return None
        try:
            _one_connection(url, headers, out, progress, file.size_bytes)
            return None
        except _TooMuch as error:
            return str(error)
        except Exception as error:
            out.flush()
            idle = 0 if out.tell() > before else idle + 1
            passing = is_connection_error(error) or _status(error) in _RETRIED
            if not passing or idle >= TRIES_WITHOUT_A_BYTE:
                raise
            time.sleep(min(LONGEST_WAIT_SECONDS, 2.0 ** max(0, idle - 1) * 0.5))


def _one_connection(
    url: str,
    headers: dict[str, str],
    out: BinaryIO,
    progress: FileProgress,
    size_bytes: int | None,
) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    have = out.tell()
    # ranges count the bytes as they are stored, so nothing may be compressed on the way
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
    with session().stream(
        "GET", url, headers=asked, timeout=SOCKET_SECONDS, follow_redirects=True
    ) as response:
        if (
            response.status_code == 416 and have
        ):  # there are no such bytes: these are another file's
            _drop(out, progress)
            raise ConnectionError("the server has less of it than is here")
        hf_raise_for_status(response)
        if have and not _continues(response, have):
            _drop(out, progress)
        most = _most_bytes(response, out, size_bytes)
        # as they come: what a fixed chunk size gathers is lost where the connection breaks
        for chunk in response.iter_bytes():
            if out.tell() + len(chunk) > most:
                raise _overflow(out, most, size_bytes)
            out.write(chunk)
            progress.update(len(chunk))
    if size_bytes is not None and out.tell() < size_bytes:
        raise ConnectionError(f"the connection ended at byte {out.tell()} of {size_bytes}")


def _most_bytes(response: Any, out: BinaryIO, size_bytes: int | None) -> int:
    """How large the file may become: as stated, else what the answer says, else what the disk has.

    Raises _TooMuch where the answer says that it is larger than was stated.
    """
    said = response.headers.get("Content-Length", "")
    whole = out.tell() + int(said) if said.isdecimal() else None
    if size_bytes is not None:
        if whole is not None and whole > size_bytes:
            raise _TooMuch(f"{whole} bytes for {size_bytes}")
        return size_bytes
    return whole if whole is not None else out.tell() + _room(out)


def _room(out: BinaryIO) -> int:
    return max(0, shutil.disk_usage(Path(out.name).parent).free - SPARE_BYTES)


def _overflow(out: BinaryIO, most: int, size_bytes: int | None) -> Exception:
    if size_bytes is not None:
        return _TooMuch(f"more than {size_bytes} bytes for {size_bytes}")
    folder = Path(out.name).parent
    out.truncate(0)
    return RefusedError(
        f"the server sends more than {format_bytes(most)} and states no size; {folder} has no room "
        f"for more ({format_bytes(SPARE_BYTES)} are kept free)",
        "nothing of it was kept; look at what the address sends, or make room",
    )


def _continues(response: Any, have: int) -> bool:
    """Whether the answer starts at byte `have`; a server may send the whole file instead."""
    said = response.headers.get("Content-Range", "")
    return response.status_code == 206 and said.startswith(f"bytes {have}-")


def _drop(out: BinaryIO, progress: FileProgress) -> None:
    out.truncate(0)
    out.seek(0)
    progress.update(-progress.bytes)


def _mismatch(path: Path, file: RemoteFile) -> str | None:
    """How the content differs from what the listing states, in a few words; None where it is it."""
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return f"{size} bytes for {file.size_bytes}"
    if file.sha256 is not None:
        found, stated = _digest(path, hashlib.sha256()), file.sha256
    elif file.git_sha1 is not None:
        # how git names a blob; not a protection, but what the hub has for small files
        start = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        found, stated = _digest(path, start), file.git_sha1
    else:
        return None
    return None if found == stated.lower() else f"sha {found[:12]} for {stated[:12]}"


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return str(digest.hexdigest())


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
