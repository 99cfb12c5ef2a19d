"""Open every image of prepared rows before the start: name broken ones, count conversions.

Imports the standard library and this package; pyarrow and Pillow when called. What could be opened
once is kept by content (sha256), and a file's content by path, size, mtime and inode, so that a
second look is quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

from runner.common import durable
from runner.common.errors import Problem, SpecError
from runner.data.image_words import WORDS
from runner.data.pixels import UnreadableImage, decode, named_otherwise
from runner.data.prepared import SPLITS, Prepared

DECODING_VERSION = 1
"""Raised with every change of `pixels` that reads other files, so that no earlier look counts."""
CACHE = "images/opened.jsonl"
"""In the folder of prepared rows, which containers may write too."""
MAX_CACHE_BYTES = 512 << 20
"""A larger cache is begun anew: a line is about 300 bytes, so that is of a million images."""
NAMED = 10
"""Broken images that are named one by one."""
SAY_SECONDS = 5.0
SETTLED_SECONDS = 2.0
"""A file changed a moment ago can change again within the same mtime; what it is is not kept."""
_MOST_THREADS = 4  # each may hold an image of MAX_PIXELS
_AHEAD = 256  # files that are handed to the threads at once


@dataclass(frozen=True)
class Use:
    """The first row that names an image."""

    source: int
    """Index in the report's sources."""
    line: int


@dataclass(frozen=True)
class Opened:
    """What came of opening one file."""

    error: str | None
    conversions: tuple[str, ...] = ()
    format: str = ""
    """Pillow's name of it."""


@dataclass
class _Known:
    """What earlier looks found."""

    contents: dict[str, Opened] = field(default_factory=dict)
    """sha256 -> what came of it, by this Pillow."""
    files: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    """Path -> (size, mtime and inode), sha256."""


def open_images(
    prepared: Prepared, background: str, cache: Path, say: Callable[[str], None]
) -> dict[str, object]:
    """Open each image that the rows of every split name, once; the record of it.

    Args:
        prepared: the rows.
        background: data.image_background, for the words.
        cache: the folder of prepared rows, where what was opened is kept.
        say: gets a line every few seconds.

    Returns `files`, `background` and a count for each conversion.

    Raises SpecError naming the first NAMED images that are not there or can't be read, by the row
    that names them, and how many there are.
    """
    uses = named_images(prepared)
    place = cache / CACHE
    known = _read(place)
    counts = Counter[str]()
    broken: list[tuple[str, str]] = []
    said = time.monotonic()
    with _appending(place) as keep:
        for done, (path, opened) in enumerate(_look(uses, known, keep), start=1):
            counts.update(opened.conversions)
            if opened.error is None and named_otherwise(Path(path), opened.format):
                counts["wrong_suffix"] += 1
            if opened.error is not None:
                broken.append((path, opened.error))
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                say(f"images: {done:,} of {len(uses):,} opened")
    if broken:
        raise SpecError(_problems(prepared, uses, broken))
    return {
        "files": len(uses),
        "background": background,
        **{name: counts[name] for name in WORDS},
    }


def named_images(prepared: Prepared) -> dict[str, Use]:
    """Path of each image of the rows -> the first row that names it; streams over the rows."""
    import pyarrow.parquet

    uses: dict[str, Use] = {}
    for split in SPLITS:
        if not prepared.counts[split]:
            continue
        with pyarrow.parquet.ParquetFile(prepared.folder / f"{split}.parquet") as table:
            for batch in table.iter_batches(columns=["source", "line", "images"]):
                columns = (batch.column(name).to_pylist() for name in ("source", "line", "images"))
                for source, line, images in zip(*columns, strict=True):
                    for path in images or ():
                        uses.setdefault(path, Use(source, line))
    return uses


def _problems(
    prepared: Prepared, uses: dict[str, Use], broken: list[tuple[str, str]]
) -> list[Problem]:
    sources = prepared.report["sources"]
    shown = sorted(broken, key=lambda one: (uses[one[0]].source, uses[one[0]].line))[:NAMED]
    problems = []
    for path, reason in shown:
        use = uses[path]
        source = sources[use.source]
        where, name = f"{source['place']}:{use.line}", f"{source['field']} -> images"
        expected = "an image that can be read, or rows without it"
        problems.append(Problem(where, name, reason, path, expected))
    if len(broken) == 1:
        return problems
    first = sources[uses[shown[0][0]].source]
    more = f", the first {NAMED} of them above" if len(broken) > NAMED else ""
    text = f"{len(broken):,} of {len(uses):,} images can't be read{more}"
    return [*problems, Problem(first["place"], f"{first['field']} -> images", text)]


def _look(
    uses: Iterable[str], known: _Known, keep: Callable[[Mapping[str, object]], None]
) -> Iterator[tuple[str, Opened]]:
    """Each path with what came of it, in order."""
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        paths = iter(uses)
        while batch := list(islice(paths, _AHEAD)):
            found = pool.map(lambda one: _open(one, known), batch)
            for path, (opened, key, digest) in zip(batch, found, strict=True):
                if digest is not None and opened.error is None:
                    _remember(known, keep, path, key, digest, opened)
                yield path, opened


def _open(path: str, known: _Known) -> tuple[Opened, list[int] | None, str | None]:
    """What came of a file, (size, mtime, inode) and sha256 where these can be kept."""
    try:
        state = Path(path).stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for
            return Opened("it is no file"), None, None
        key = [state.st_size, state.st_mtime_ns, state.st_ino]
        before = known.files.get(path)
        if before and before[0] == key and before[1] in known.contents:
            return known.contents[before[1]], None, None
        with Path(path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return Opened("no such image file"), None, None
    except OSError as error:
        return Opened(f"it can't be read: {error.strerror or error}"), None, None
    settled = time.time() - state.st_mtime_ns / 1e9 > SETTLED_SECONDS
    opened = known.contents.get(digest) or _decode(path)
    return opened, key if settled else None, digest


def _decode(path: str) -> Opened:
    try:
        found = decode(path)
    except UnreadableImage as error:
        return Opened(str(error))
    except FileNotFoundError:
        return Opened("no such image file")
    return Opened(None, tuple(sorted(found.conversions)), found.format)


def _remember(
    known: _Known,
    keep: Callable[[Mapping[str, object]], None],
    path: str,
    key: list[int] | None,
    digest: str,
    opened: Opened,
) -> None:
    if digest not in known.contents:
        known.contents[digest] = opened
        found = {"format": opened.format, "conversions": list(opened.conversions)}
        keep({"sha256": digest, "by": _decoder(), **found})
    if key is None:
        return
    known.files[path] = (key, digest)
    with contextlib.suppress(UnicodeEncodeError):  # a name that is no text has no line
        keep({"path": path, "key": key, "sha256": digest})


def _decoder() -> str:
    """What a look depends on besides the file."""
    try:
        return f"Pillow {version('pillow')}, {DECODING_VERSION}"
    except PackageNotFoundError:
        return f"{DECODING_VERSION}"


def _read(place: Path) -> _Known:
    known, decoder = _Known(), _decoder()
    for line in durable.read_jsonl(place):
        with contextlib.suppress(KeyError, TypeError):
            if "path" in line:
                key, digest = line["key"], line["sha256"]
                if isinstance(key, list):
                    known.files[str(line["path"])] = (key, str(digest))
            elif line["by"] == decoder and isinstance(line["conversions"], list):
                conversions = tuple(map(str, line["conversions"]))
                found = Opened(None, conversions, str(line["format"]))
                known.contents[str(line["sha256"])] = found
    return known


@contextlib.contextmanager
def _appending(place: Path) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """What appends a line to the cache; without one that can be written it does nothing."""
    writer: durable.JsonlWriter | None = None
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and place.stat().st_size > MAX_CACHE_BYTES:
            place.unlink()
        writer = durable.JsonlWriter(place)

    def keep(record: Mapping[str, object]) -> None:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.write(record)

    try:
        yield keep
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
