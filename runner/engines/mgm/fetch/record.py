"""Read the records of what is in runner's cache folder mgm/. Standard library only.

`runner-source.json`, in a folder or beside a file, says where it is from and what was verified. It
is written last: where it is and what it names is there, all of it is there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.engines.mgm.sources import MgmSource
from runner.plans.sources import MANIFEST

SCHEMA_VERSION = 1


def base_folder(cache: Path) -> Path:
    """Where all of it goes: a job's relative paths mgm/... are looked for from `cache`."""
    return cache / "mgm"


def record_file(source: MgmSource, base: Path) -> Path:
    """Where the record of `source` is."""
    target = base / source.target
    if source.kind == "file":
        return target.with_name(f"{target.name}.{MANIFEST}")
    return target / MANIFEST


def read_record(source: MgmSource, base: Path) -> dict[str, Any] | None:
    """The record of `source` where it is whole and as the table asks today; None otherwise.

    Looks at names and sizes; the content was verified when it came, and is not read again.
    """
    record = durable.read_json(record_file(source, base))
    target = base / source.target
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        return None
    pinned = source.revision is None or record.get("revision") == source.revision
    counted = source.rows is None or record.get("rows") == source.rows
    if not (pinned and counted and record.get("name") == source.name):
        return None
    if source.kind == "file":
        return record if _size(target) == record.get("size_bytes") else None
    if not all((target / path).exists() for path in source.expects):
        return None
    files = record.get("files") or []
    whole = all(_size(target / str(file["path"])) == file["size_bytes"] for file in files)
    return record if whole else None


def images_to_check(
    table: tuple[MgmSource, ...], base: Path
) -> list[tuple[MgmSource, MgmSource, dict[str, Any], dict[str, Any]]]:
    """(archive, rows, record, record) of all that is here and was not yet held together.

    Rows belong to the images of the archive whose folder they lie in.
    """
    found = []
    for archive in table:
        for rows in table:
            if not belongs(rows, archive):
                continue
            record, other = read_record(archive, base), read_record(rows, base)
            if record is None or other is None:
                continue
            if (record.get("images") or {}).get("rows_sha256") != other.get("sha256"):
                found.append((archive, rows, record, other))
    return found


def belongs(rows: MgmSource, archive: MgmSource) -> bool:
    """Whether `rows` is a training file whose images `archive` brings."""
    inside = rows.target.startswith(f"{archive.target}/")
    return archive.kind == "archive" and rows.kind == "file" and rows.rows is not None and inside


def new_record(
    source: MgmSource,
    address: str,
    *,
    size_bytes: int,
    sha256: str | None,
    verified: list[str],
    authenticated: bool,
    **more: object,
) -> dict[str, object]:
    """What is written beside what came.

    Args:
        verified: what was held against what, a sentence each.
        authenticated: who made it is known: a pinned commit, a hash in the table of sources, or
            https from its own address. What a mirror says of itself is no proof.
        more: what only this kind has.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "name": source.name,
        "kind": source.kind,
        "where": address,
        "licence": source.licence,
        "size_bytes": size_bytes,
        "sha256": sha256,
        "verified": verified,
        "authenticated": authenticated,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **more,
    }


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
