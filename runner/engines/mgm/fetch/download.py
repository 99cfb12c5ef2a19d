"""One file over HTTP that no listing states a hash of: looked at first, resumed, checked by what
is in it. Uses huggingface_hub's HTTP session through runner.fetch.stream, never its token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from runner.common import durable
from runner.common.caches import file_sha256
from runner.common.errors import RefusedError
from runner.engines.mgm.fetch.address import shown
from runner.engines.mgm.sources import MgmSource
from runner.fetch.fetched import require_room
from runner.fetch.files import RemoteFile
from runner.fetch.refusals import is_connection_error
from runner.fetch.secure import session
from runner.fetch.stream import SOCKET_SECONDS, download, partial_file

TRIES = 3
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
Made = TypeVar("Made")


class ContentError(Exception):
    """What arrived is not what was asked for; the message says how, in a few words."""


@dataclass(frozen=True)
class Remote:
    """What a server says of a file before it is fetched; None where it says nothing."""

    url: str
    size_bytes: int | None
    etag: str | None
    modified: str | None
    md5: str | None
    """Of Content-MD5, in hex: against breakage on the way, not against who wrote it."""
    secure: bool
    """https, all the way through its redirects."""


@dataclass(frozen=True)
class Arrived:
    """A file that came, and was not yet looked into."""

    remote: Remote
    sha256: str
    size_bytes: int
    fetched_bytes: int
    """That came over the network this time."""
    resumed: bool
    """Some of it lay here before."""

    def verified(self) -> list[str]:
        """What its way here proves, a sentence each."""
        told = []
        if self.remote.size_bytes is not None:
            told.append(f"{self.size_bytes} bytes, as the server says")
        if self.remote.md5:
            told.append("MD5 as the server says (Content-MD5)")
        return told


def bring_checked(
    source: MgmSource,
    url: str,
    place: Path,
    check: Callable[[Arrived], Made],
    *,
    unpacked: bool,
    quiet: bool,
    say: Callable[[str], None],
) -> tuple[Arrived, Made]:
    """Bring `url` to `place` and look into it; what is wrong is not kept.

    Where part of it lay here before, that may be what is wrong: it is then fetched whole once more
    before the server is blamed.

    Args:
        check: what the file turns out to be; raises ContentError.
        unpacked: room for its content is needed beside it.

    Raises:
        RefusedError: too little room, or wrong content.
        Exception: of the HTTP client; what came is kept for the next time.
    """
    for last in (False, True):
        arrived = _bring(source, url, place, unpacked=unpacked, quiet=quiet, say=say)
        try:
            return arrived, check(arrived)
        except ContentError as error:
            forget(place)
            if last or not arrived.resumed:
                raise RefusedError(
                    f"{source.name} from {shown(url)} is not what it should be: {error}",
                    "nothing of it was kept; a proxy or a mirror may be at fault: look at what "
                    "the address sends, or name another in MGM_DATA_ENDPOINT",
                ) from error
            say(f"{place.name}: {error}; what was here is dropped, and it is fetched whole")
    raise AssertionError("unreachable")


def proven(source: MgmSource, url: str, arrived: Arrived) -> bool:
    """Whether who made it is known: by a hash in the table, or https from its own host."""
    hosts = {urllib.parse.urlsplit(text).hostname for text in (url, source.where)}
    return source.sha256 is not None or (arrived.remote.secure and len(hosts) == 1)


def forget(place: Path) -> None:
    """Remove a file that came, or part of it, and what was noted of it."""
    for path in (place, partial_file(place), _note(place)):
        path.unlink(missing_ok=True)


def _bring(
    source: MgmSource,
    url: str,
    place: Path,
    *,
    unpacked: bool,
    quiet: bool,
    say: Callable[[str], None],
) -> Arrived:
    place.parent.mkdir(parents=True, exist_ok=True)
    remote = _look(url)
    if source.size_bytes is not None and remote.size_bytes not in (None, source.size_bytes):
        raise RefusedError(
            f"{source.name}: {shown(url)} has {remote.size_bytes} bytes for {source.size_bytes}",
            "the server has another file there now",
        )
    note = asdict(remote)
    if durable.read_json(_note(place)) != note:  # of another file, or of this one as it was
        forget(place)
        durable.write_json(_note(place), note)
    whole, partial = place.exists(), partial_file(place)
    had = place.stat().st_size if whole else partial.stat().st_size if partial.exists() else 0
    size = source.size_bytes or remote.size_bytes
    if size is None:
        say(f"{place.name}: the server states no size; room for it can't be looked for")
    else:
        # pictures hardly shrink in an archive: unpacked they take its size once more
        require_room(source.name, max(0, size - had) + (size if unpacked else 0), place.parent)
    headers = {"If-Range": remote.etag} if remote.etag else {}
    expected = RemoteFile(place.name, size, source.sha256)
    download(url, headers, expected, place, quiet=quiet, say=say)
    size = place.stat().st_size
    arrived = Arrived(remote, file_sha256(place), size, max(0, size - had), had > 0)
    if remote.md5 and _md5(place) != remote.md5:
        forget(place)
        raise RefusedError(
            f"{source.name} came with another MD5 than {shown(url)} states",
            "nothing of it was kept; the same command fetches it anew",
        )
    return arrived


def _look(url: str) -> Remote:
    """What the server says of the file; the HTTP client's error where it has none."""
    from huggingface_hub.utils import hf_raise_for_status

    for tries_left in range(TRIES - 1, -1, -1):
        try:
            response: Any = session().head(
                url,
                headers={"Accept-Encoding": "identity"},
                timeout=SOCKET_SECONDS,
                follow_redirects=True,
            )
            hf_raise_for_status(response)
            break
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if not tries_left or not (is_connection_error(error) or status in _RETRIED):
                raise
            time.sleep(1.0)
    headers = response.headers
    length, etag = headers.get("Content-Length"), headers.get("ETag")
    hops = (*response.history, response)
    return Remote(
        url=shown(url),
        size_bytes=int(length) if length and length.isdecimal() else None,
        etag=etag if etag and not etag.startswith("W/") else None,
        modified=headers.get("Last-Modified"),
        md5=_hex(headers.get("Content-MD5")),
        secure=all(str(hop.url).startswith("https:") for hop in hops),
    )


def _note(place: Path) -> Path:
    return place.with_name(f"{place.name}.runner.remote.json")


def _hex(said: str | None) -> str | None:
    try:
        content = base64.b64decode(said or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return content.hex() if len(content) == 16 else None


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        start = hashlib.md5(usedforsecurity=False)
        return hashlib.file_digest(stream, lambda: start).hexdigest()
