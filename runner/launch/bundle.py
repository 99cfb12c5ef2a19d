"""Pack a run into one file, for another machine. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import __version__
from runner.common.caches import cache_folder
from runner.common.errors import RefusedError, UsageError, nearest
from runner.common.output import Output
from runner.launch.sigterm import tidy_at_sigterm
from runner.provenance.bundle import write
from runner.provenance.bundle.contents import ASKED, contents
from runner.provenance.bundle.index import Index
from runner.provenance.bundle.index import Part as Asked
from runner.provenance.bundle.local_plan import placed_inputs
from runner.provenance.compared import manifest_folder
from runner.provenance.hashes import Hasher
from runner.provenance.manifest import Manifest, sha256_of
from runner.provenance.replay import plan_of
from runner.provenance.verify import changed_since, read_side
from runner.runs.find import default_root
from runner.runs.folder import RunFolder

Progress = Callable[[int, int], None]
"""Called with the bytes written so far, and of how many."""


@dataclass(frozen=True)
class Bundled:
    """A run in a file."""

    index: Index
    path: Path
    size_bytes: int
    sha256: str

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        index = self.index
        return {
            "schema_version": 1,
            "run": index.run,
            "file": str(self.path),
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "contains": list(index.contains),
            "files": len(index.members),
            "image": index.image,
            "lacks": [lacking.model_dump(mode="json") for lacking in index.lacks],
            "notes": list(index.notes),
        }


def bundle(
    run: str,
    output: Output,
    progress: Progress,
    *,
    include: str = "",
    out: Path | None = None,
    force: bool = False,
    runs: Path | None = None,
) -> Bundled:
    """Write a run's bundle.

    Args:
        include: of ASKED, joined by commas.
        out: the file; None is one here, named by the run.
        force: replace a file that is there.

    Raises:
        UsageError: `include` names something else than ASKED, or `out` can't be it.
        RefusedError: the run has no results, was changed since, or an input is not what it read;
            the disk refuses.
    """
    asked = parts_asked(include)
    folder = manifest_folder(run, runs or default_root())
    hasher = Hasher(cache_folder() / "hashes", say=output.say)
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
    whole = packed.index.size_bytes
    with tidy_at_sigterm():
        written = write.write(packed, path, lambda done: progress(done, whole))
    return Bundled(packed.index, path, written.size_bytes, written.sha256)


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
