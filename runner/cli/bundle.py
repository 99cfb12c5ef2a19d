"""`runner bundle`: pack a run into one file, for another machine. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner import __version__
from runner.common.caches import cache_folder
from runner.common.copy_progress import LiveLine
from runner.common.errors import RefusedError, UsageError, nearest
from runner.common.output import Output, field
from runner.common.units import format_bytes
from runner.provenance.bundle import write
from runner.provenance.bundle.contents import ASKED, Contents, contents
from runner.provenance.bundle.index import Index, MissingInput
from runner.provenance.bundle.index import Part as Asked
from runner.provenance.bundle.local_plan import placed_inputs
from runner.provenance.compared import manifest_folder
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest, sha256_of
from runner.provenance.replay import plan_of
from runner.provenance.verify import changed_since, read_side
from runner.runs.find import default_root
from runner.runs.folder import RunFolder


def bundle_run(
    run: str, include: str, *, out: Path | None, force: bool, runs: Path | None, as_json: bool
) -> int:
    """0 once the bundle is written.

    Raises:
        UsageError: `include` names something else than ASKED, or `out` can't be it.
        RefusedError: the run has no results, was changed since, or an input is not what it read;
            the disk refuses.
    """
    say = Output(as_json=as_json)
    asked = parts_asked(include)
    folder = manifest_folder(run, runs or default_root())
    hasher = Hasher(cache_folder() / "hashes", say=say.say)
    manifest = _manifest(folder, hasher)
    if out is not None:
        write.require_path(out, force=force)
    packed = contents(
        folder,
        manifest,
        placed_inputs(folder, plan_of(manifest), {}),
        asked,
        hasher,
        made_by=f"runner {__version__}",
        manifest_sha256=sha256_of(folder.manifest),
    )
    path = out if out is not None else Path(write.default_name(packed))
    write.require_path(path, force=force)
    line = LiveLine()
    try:
        with tidy_at_sigterm():
            written = write.write(packed, path, line.bytes("bundling", packed.index.size_bytes))
    finally:
        line.clear()
    index = packed.index
    record: dict[str, Any] = {
        "schema_version": 1,
        "run": index.run,
        "file": str(path),
        "size_bytes": written.size_bytes,
        "sha256": written.sha256,
        "contains": list(index.contains),
        "files": len(index.members),
        "image": index.image,
        "lacks": [lacking.model_dump(mode="json") for lacking in index.lacks],
        "notes": list(index.notes),
    }
    lines = [
        field("bundled", f"{index.run}, plan {index.plan_hash[:7]}"),
        field("holds", _holds(packed)),
        *what_is_lacking(index),
        *(field("note", note) for note in index.notes),
        field("file", f"{path}  {format_bytes(written.size_bytes)}  sha256 {written.sha256}"),
        field("next", f"there: runner unbundle {path.name}"),
    ]
    say.result(record, lines)
    return 0


@contextlib.contextmanager
def tidy_at_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the command as an error does: what was begun is removed."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parts_asked(text: str) -> list[Asked]:
    """What --with names. Raises UsageError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in ASKED:
            near = nearest(word, ASKED)
            raise UsageError(
                f"--with {word}: expected {', '.join(ASKED)}, joined by commas",
                f"nearest: {near}" if near else None,
            )
    return [one for one in ASKED if one in words]


def what_is_lacking(index: Index) -> list[str]:
    """What a person has to bring, a line each."""
    lines = [field("lacks", lacking_line(lacking)) for lacking in index.lacks]
    if index.image is not None:
        name, _, digest = index.image.partition(" ")
        lines.append(
            field("image", f"{name} {digest[:19]}: runner image save and load bring it along")
        )
    return lines


def lacking_line(lacking: MissingInput) -> str:
    """data.train: rows.jsonl, 12 KiB, sha256 0123456789ab."""
    known = lacking.files
    name = lacking.id and lacking.id + (f"@{lacking.revision}" if lacking.revision else "")
    largest = max(known, key=lambda each: each.size_bytes or 0, default=None)
    if largest is None:
        return f"{lacking.what}: {name or 'not hashed by the run'}"
    size = sum(each.size_bytes or 0 for each in known)
    few = len(known) == 1
    parts = [name] if name else []
    parts.append(largest.name if few and not name else f"{len(known)} files" if not few else "")
    parts.append(format_bytes(size))
    digest = (largest.sha256 or "unknown")[:12]
    parts.append(f"sha256 {digest}" if few else f"{largest.name} sha256 {digest}")
    return f"{lacking.what}: {', '.join(part for part in parts if part)}"


def _holds(packed: Contents) -> str:
    index = packed.index
    inputs = sorted({what.rpartition(": ")[2] for what in index.places})
    parts = ["the run's records", *inputs, *(["adapter"] if "adapter" in index.contains else [])]
    size = format_bytes(index.size_bytes)
    return f"{', '.join(parts)}: {len(index.members)} files, {size}"


def _manifest(folder: RunFolder, hasher: Hasher) -> Manifest:
    """The run's manifest, known to be whole and still what its folder holds."""
    side = read_side(folder)
    manifest = side.manifest
    if manifest.results is None or not manifest.complete:
        raise RefusedError(
            f"{manifest.run} has no results, by which another machine could tell whether it gave "
            "the same: it has not ended, or was lost",
            f"runner report {manifest.run}",
        )
    for difference in changed_since(folder, side, hasher):
        raise RefusedError(
            f"{difference.text}; a bundle of it would not be that run",
            "put the file back as it was",
        )
    return manifest
