"""Download a data file of the MGM challenge, parse it whole, count its rows, look for its images.

Standard library, the toolkit's row readers, and runner.fetch's downloads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.common import durable
from runner.common.caches import file_sha256
from runner.common.errors import RefusedError
from runner.engines.mgm.fetch.address import address, shown
from runner.engines.mgm.fetch.download import Arrived, ContentError, bring_checked, forget, proven
from runner.engines.mgm.fetch.record import new_record, record_file
from runner.engines.mgm.sources import MgmSource
from runner.engines.mgm.stages.convert import read_array, read_rows


def fetch_file(
    source: MgmSource, base: Path, *, quiet: bool, say: Callable[[str], None]
) -> tuple[dict[str, object], int]:
    """The record of `source`, now in its place, and the bytes that came over the network.

    A file that lies there without a record (an archive brought it, or a kill came between the two)
    is looked into as if it had just come.

    Raises:
        RefusedError: it does not parse, or has another number of rows; or too little room.
        Exception: of the HTTP client.
    """
    target, url = base / source.target, address(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and record_file(source, base).exists():
        say(f"{target} is no longer what came; it is fetched anew")
        target.unlink()
        record_file(source, base).unlink()
    if target.exists():
        try:
            count = count_rows(target, source.rows)
        except ContentError as error:
            raise RefusedError(
                f"{target} is there, not from runner fetch, and not {source.name}: {error}",
                f"move it away, or name it in the job: --set {source.field}=FILE",
            ) from error
        size, sha256 = target.stat().st_size, file_sha256(target)
        record = new_record(
            source,
            "found in its place",
            size_bytes=size,
            sha256=sha256,
            verified=_told(target, count, source),
            authenticated=sha256 == source.sha256,
            rows=count,
        )
        durable.write_json(record_file(source, base), record)
        return record, 0
    say(f"{source.name}: {shown(url)} -> {target}")
    place = base / ".downloads" / target.name

    def check(_: Arrived) -> int:
        return count_rows(place, source.rows)

    arrived, count = bring_checked(source, url, place, check, unpacked=False, quiet=quiet, say=say)
    record = new_record(
        source,
        shown(url),
        size_bytes=arrived.size_bytes,
        sha256=arrived.sha256,
        verified=[*arrived.verified(), *_told(place, count, source)],
        authenticated=proven(source, url, arrived),
        rows=count,
    )
    place.replace(target)
    durable.fsync_folder(target.parent)
    durable.write_json(record_file(source, base), record)
    forget(place)
    return record, arrived.fetched_bytes


def count_rows(path: Path, expected: int | None) -> int:
    """How many rows the file has, every one parsed.

    Raises ContentError where it is neither JSONL nor a JSON array of objects, by its ending, or
    has another number of rows than `expected`.
    """
    try:
        count = sum(1 for _ in _rows(path))
    except (ValueError, RecursionError) as error:
        raise ContentError(f"it does not parse: {str(error)[:200]}") from error
    if count == 0 or expected not in (None, count):
        raise ContentError(f"{count} rows for {expected or 'some'}")
    return count


def missing_images(rows: Path, folder: Path) -> tuple[int, list[str]]:
    """How many images the rows name, and those of them that are no file under `folder`.

    A path that leads out of `folder` counts as missing: it is not what the archive brought.
    """
    named: set[str] = set()
    for row in _rows(rows):
        named.update(_images(row))
    top = os.path.realpath(folder)
    missing = []
    for name in sorted(named):
        place = os.path.realpath(folder / name)
        if not (place.startswith(f"{top}{os.sep}") and Path(place).is_file()):
            missing.append(name)
    return len(named), missing


def _images(row: dict[str, object]) -> list[str]:
    """Of data-juicer's rows and of LLaVA's; a row may have none."""
    said = row.get("images") or row.get("image") or []
    return [str(name) for name in (said if isinstance(said, list) else [said])]


def _rows(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as stream:
        if path.suffix == ".jsonl":
            yield from read_rows(stream, path.name)
        else:
            yield from read_array(stream, path.name)


def _told(path: Path, count: int, source: MgmSource) -> list[str]:
    kind = "JSON lines" if path.suffix == ".jsonl" else "a JSON array"
    told = [f"parses whole as {kind}, {count} rows"]
    if source.rows is not None:
        told[0] += ", as many as the baseline has"
    if source.sha256 is not None:
        told.append("sha256 as runner's table of sources says")
    return told
