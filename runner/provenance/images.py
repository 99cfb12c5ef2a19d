"""Images that rows name: one digest over all of them, and a list that tells which is another.

Imports the standard library, runner.durable and runner.provenance.hashes. The engine lists them
once it has the rows (engine/images.json); they are hashed beside the training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from runner import durable
from runner.provenance.hashes import SAY_SECONDS, SETTLED_SECONDS, Hasher
from runner.provenance.manifest import FileRecord

SCHEMA_VERSION = 1
WHAT = "data.images"
_Known = dict[str, tuple[list[int], str]]


def write_list(place: Path, paths: Iterable[str]) -> None:
    """The engine's word on which images its rows name: absolute paths, each once."""
    durable.write_json(place, {"schema_version": SCHEMA_VERSION, "images": sorted(set(paths))})


def hashed_images(
    listed: Path, out: Path, what: str, hasher: Hasher, cache: Path
) -> FileRecord | None:
    """Hash the images in the list at `listed`; None where it names none, or is not there.

    `out` gets a line `SHA256  PATH` for each, by path, as sha256sum writes it; paths start from the
    folder that all have in common, so that it does not count where that lies. The record's sha256
    is that file's. Hashes are kept in `cache`, by path, size, mtime and inode.

    Raises OSError naming an image that can't be read, GaveUp.
    """
    record = durable.read_json(listed)
    paths = record.get("images") if isinstance(record, dict) else None
    if not paths:
        return None
    root = Path(os.path.commonpath([str(Path(path).parent) for path in paths]))
    place = cache / f"images-{hashlib.sha256(str(root).encode()).hexdigest()[:32]}.jsonl"
    known, kept = _read_known(place), _Known()
    lines, size, said = [], 0, time.monotonic()
    for number, path in enumerate(paths):
        state = Path(path).stat()
        key = [state.st_size, state.st_mtime_ns, state.st_ino]
        name = Path(path).relative_to(root).as_posix()
        before = known.get(name)
        digest = before[1] if before and before[0] == key else hasher.file(Path(path))
        if time.time() - state.st_mtime_ns / 1e9 > SETTLED_SECONDS:
            kept[name] = (key, digest)
        lines.append(_line(digest, name))
        size += state.st_size
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            hasher.say(f"hashing    images: {number + 1:,} of {len(paths):,}")
    durable.write_text(out, "".join(lines))
    with contextlib.suppress(OSError):  # a full disk costs time only
        cache.mkdir(parents=True, exist_ok=True)
        durable.write_text(place, _known_text({**known, **kept}))
    return FileRecord(
        what=what,
        path=str(root),
        kind="images",
        sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        size_bytes=size,
        files=len(paths),
    )


def read_hashes(path: Path) -> dict[str, str]:
    """Path to sha256 of the images in such a list, in its order; empty where there is none."""
    found = {}
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        return {}
    for line in text.split("\n"):
        escaped = line.startswith("\\")
        digest, _, name = line.removeprefix("\\").partition("  ")
        if name:
            found[_unescaped(name) if escaped else name] = digest
    return found


def first_other(ours: Mapping[str, str], theirs: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Name and both hashes of the first image that is not alike, by name; "" where one lacks it."""
    for name in sorted({*ours, *theirs}):
        one, other = ours.get(name, ""), theirs.get(name, "")
        if one != other:
            return name, one, other
    return None


def _line(digest: str, name: str) -> str:
    shown = name.replace("\\", "\\\\").replace("\n", "\\n")
    return ("\\" if shown != name else "") + f"{digest}  {shown}\n"


def _unescaped(name: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in name.split("\\\\"))


def _read_known(place: Path) -> _Known:
    found: _Known = {}
    for line in durable.read_jsonl(place):
        with contextlib.suppress(KeyError, TypeError):
            found[line["name"]] = (line["key"], line["sha256"])
    return found


def _known_text(known: _Known) -> str:
    return "".join(
        json.dumps({"name": name, "key": key, "sha256": digest}) + "\n"
        for name, (key, digest) in known.items()
    )
