"""Download a tar.gz of the MGM challenge, unpack it in a temporary folder, and move it into place.

Standard library, and runner.fetch's downloads. What is in the archive is not trusted: it has no
published hash.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from runner.common.errors import RefusedError
from runner.common.units import format_bytes
from runner.engines.mgm.fetch.address import address, shown
from runner.engines.mgm.fetch.download import Arrived, ContentError, bring_checked, forget, proven
from runner.engines.mgm.fetch.place import making, merge, size_of
from runner.engines.mgm.fetch.record import new_record
from runner.engines.mgm.sources import MgmSource
from runner.fetch.fetched import SPARE_BYTES
from runner.plans.sources import MANIFEST

BLOCK_BYTES = 512
"""Of a tar file; one of zeros ends it."""
PADDING_BYTES = 64 * 1024 * 1024
"""After its end at most: tar pads to 10 KiB as a rule."""


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive."""

    files: int
    size_bytes: int


def fetch_archive(
    source: MgmSource,
    table: tuple[MgmSource, ...],
    base: Path,
    *,
    quiet: bool,
    say: Callable[[str], None],
) -> tuple[dict[str, object], int]:
    """The record of `source`, now in its place, and the bytes that came over the network.

    Raises:
        RefusedError: too little room, a damaged archive, one with members that lead out of it or
            without what is expected in it.
        Exception: of the HTTP client.
    """
    if not hasattr(tarfile, "data_filter"):
        raise RefusedError(
            "this Python unpacks archives without a filter against harmful members",
            "take Python 3.11.4 or newer",
        )
    target, url = base / source.target, address(source)
    place = base / ".downloads" / f"{target.name}.tar.gz"
    say(f"{source.name}: {shown(url)} -> {target}")
    with making(target) as made:

        def check(_: Arrived) -> Unpacked:
            shutil.rmtree(made)
            made.mkdir()
            say(f"  unpacking {place.name}")
            unpack(place, made)
            _without_top(made)
            top = sorted(entry.name for entry in made.iterdir())
            for path in source.expects:
                if not (made / path).exists():
                    raise ContentError(f"no {path} in it, but {', '.join(top[:5]) or 'nothing'}")
            return Unpacked(*size_of(made))

        arrived, unpacked = bring_checked(
            source, url, place, check, unpacked=True, quiet=quiet, say=say
        )
        verified = [
            *arrived.verified(),
            f"unpacks whole (gzip's CRC-32, tar's end), {unpacked.files} files, none outside",
        ]
        if source.sha256 is not None:
            verified.append("sha256 as runner's table of sources says")
        if source.expects:
            verified.append(f"has {', '.join(source.expects)}")
        record = new_record(
            source,
            shown(url),
            size_bytes=unpacked.size_bytes,
            sha256=arrived.sha256,
            verified=verified,
            authenticated=proven(source, url, arrived),
            file_count=unpacked.files,
            archive_bytes=arrived.size_bytes,
        )
        start = f"{source.target}/"
        others = [other for other in table if other.target.startswith(start)]
        names = [other.target.removeprefix(start).partition("/")[0] for other in others]
        keep = frozenset([*names, *(f"{name}.{MANIFEST}" for name in names)])
        merge(made, target, record, keep)
    forget(place)
    return record, arrived.fetched_bytes


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz into `folder`, to its very end.

    Raises:
        ContentError: it is damaged or cut short, or a member is neither file nor folder of a plain
            relative name.
        RefusedError: it grows beyond the room on the disk.
    """
    room = shutil.disk_usage(folder).free - SPARE_BYTES
    size = 0
    try:
        with gzip.open(archive, "rb") as plain:
            watched = _Watched(cast(BinaryIO, plain))
            with tarfile.open(fileobj=cast(BinaryIO, watched), mode="r:") as tar:
                for member in tar:
                    if problem := harm(member):
                        raise ContentError(problem)
                    size += member.size
                    if size > room:
                        raise RefusedError(
                            f"{archive.name} unpacks to more than {format_bytes(room)}, which is "
                            f"all that {folder.parent.parent} has free",
                            f"make room ({format_bytes(SPARE_BYTES)} are kept free), or name "
                            "another disk in RUNNER_CACHE; the archive itself is kept",
                        )
                    tar.extract(member, folder, filter="data")
            # tarfile takes an end without its mark for an end
            if watched.last != bytes(BLOCK_BYTES):
                raise ContentError("it is cut short: tar's end is not in it")
            _drain(plain)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ContentError(f"it is damaged or cut short: {str(error)[:200]}") from error


def harm(member: tarfile.TarInfo) -> str | None:
    """Why a member is not unpacked, in a few words; None where it is harmless.

    Stricter than tarfile's filter, which lets links within the folder pass and has been led
    outside by chains of them (CVE-2025-4517); pictures need none.
    """
    name = member.name
    if not (member.isfile() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a special file"
        return f"its member {name[:120]!r} is {kind}"
    if name.startswith(("/", "\\")) or ".." in name.split("/") or "\0" in name:
        return f"its member {name[:120]!r} leads out of it"
    if name.rpartition("/")[2].endswith(MANIFEST):
        return f"its member {name[:120]!r} poses as a record of runner's"
    return None


def _without_top(made: Path) -> None:
    """An archive of one folder named as the target: what is in that folder is what is meant."""
    entries = list(made.iterdir())
    if [entry.name for entry in entries] != [made.name] or not entries[0].is_dir():
        return
    inner = made.parent / "inner"
    entries[0].rename(inner)
    made.rmdir()
    inner.rename(made)


def _drain(plain: gzip.GzipFile) -> None:
    """Read what follows tar's end, so that gzip's checksum over all of it is compared."""
    left = PADDING_BYTES
    while block := plain.read(min(left, 1024 * 1024)):
        left -= len(block)
        if left <= 0:
            raise ContentError(f"over {format_bytes(PADDING_BYTES)} follow the end of it")


class _Watched:
    """A stream for tarfile that remembers the last block it gave."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self.last = content
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
