"""The images of a training by hash: one digest over their list, and which of them is another.

Imports the standard library, runner.common.durable and runner.provenance.hashes. The list lies
beside the manifest; what was hashed before is kept in the cache, a file for each folder of images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.common import durable
from runner.plans.inputs import ImageNames
from runner.provenance.hashes import SAY_SECONDS, SETTLED_SECONDS, Hasher

_Known = dict[str, tuple[list[int], str]]


@dataclass(frozen=True)
class ImageList:
    """What tells each image of a training, with its hash."""

    text: str
    """A line `SHA256  LABEL` for each, as sha256sum escapes names."""
    files: int
    size_bytes: int

    @property
    def sha256(self) -> str:
        """The digest that stands for all of them."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def hash_images(found: Iterable[ImageNames], hasher: Hasher) -> ImageList:
    """Hash the images of a training, source by source.

    Hashes are kept by path, size, mtime and inode: of hundreds of thousands none is read twice.
    Raises OSError naming an image that can't be read, GaveUp.
    """
    lines, size, count, said = list[str](), 0, 0, time.monotonic()
    for source in found:
        place = hasher.cache / f"images-{_short(str(source.root.absolute()))}.jsonl"
        known, kept = _read_known(place), _Known()
        for name, (label, path) in zip(source.names, source.files(), strict=True):
            state = path.stat()
            key = [state.st_size, state.st_mtime_ns, state.st_ino]
            before = known.get(name)
            digest = before[1] if before and before[0] == key else hasher.file(path)
            if time.time() - state.st_mtime_ns / 1e9 > SETTLED_SECONDS:
                kept[name] = (key, digest)
            lines.append(_line(digest, label))
            size, count = size + state.st_size, count + 1
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                hasher.say(f"hashing    images: {count:,}")
        if any(known.get(name) != entry for name, entry in kept.items()):
            with contextlib.suppress(OSError):  # a full disk costs time only
                hasher.cache.mkdir(parents=True, exist_ok=True)
                durable.write_text(place, _known_text({**known, **kept}))
    return ImageList("".join(lines), count, size)


def read_hashes(path: Path) -> dict[str, str]:
    """Path to sha256 of the images in such a list, in its order; empty where there is none."""
    found = {}
    try:
        stream = durable.open_record(path)
    except OSError:
        return {}
    with stream:
        for content in durable.lines_in(stream):
            line = content.decode(errors="replace").removesuffix("\n")
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


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _line(digest: str, name: str) -> str:
    shown = name.replace("\\", "\\\\").replace("\n", "\\n")
    return ("\\" if shown != name else "") + f"{digest}  {shown}\n"


def _unescaped(name: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in name.split("\\\\"))


def _read_known(place: Path) -> _Known:
    found: _Known = {}
    for line in durable.read_jsonl(place):
        with contextlib.suppress(KeyError, TypeError):
            name, key, digest = line["name"], line["key"], line["sha256"]
            if isinstance(key, list):
                found[str(name)] = (key, str(digest))
    return found


def _known_text(known: _Known) -> str:
    return "".join(
        json.dumps({"name": name, "key": key, "sha256": digest}) + "\n"
        for name, (key, digest) in known.items()
    )
