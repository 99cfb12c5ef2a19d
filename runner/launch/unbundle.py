"""Unpack a bundle as a run of this machine. Imports no torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import UsageError
from runner.launch.sigterm import tidy_at_sigterm
from runner.provenance.bundle import unpack
from runner.provenance.bundle.index import Index
from runner.runs.find import default_root, is_run_name
from runner.runs.folder import RunFolder
from runner.runs.job_folders import earlier_job_folder, job_folder


@dataclass(frozen=True)
class Unbundled:
    """A run that came from elsewhere, every file of it checked."""

    index: Index
    folder: Path
    named: str
    """How commands name the run: JOB/TIME-HASH under the runs folder, else its path."""
    left_out: list[str]
    """What an earlier runner put into the bundle, and is not written here."""

    @property
    def reproduce_command(self) -> str:
        return f"runner reproduce {shlex.quote(self.named)}"

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        index = self.index
        return {
            "schema_version": 1,
            "run": index.run,
            "folder": str(self.folder),
            "plan_hash": index.plan_hash,
            "contains": list(index.contains),
            "files": len(index.members) - len(self.left_out),
            "left_out": self.left_out,
            "size_bytes": index.size_bytes,
            "image": index.image,
            "lacks": [lacking.model_dump(mode="json") for lacking in index.lacks],
            "notes": list(index.notes),
            "next": self.reproduce_command,
        }


def unbundle(
    file: Path, progress: unpack.Progress, *, folder: Path | None = None, runs: Path | None = None
) -> Unbundled:
    """Unpack a bundle, completely or not at all.

    Args:
        folder: the new folder; None is one under `runs`, by the run's own name.
        progress: is told the bytes checked so far, and of how many.

    Raises:
        UsageError: the file is no whole bundle, or the folder is there already.
        RefusedError: the disk refuses.
    """
    root = runs or default_root()
    target = folder if folder is not None else root / _own_name(unpack.read_index(file), file)
    target = target.absolute()
    if target == root.absolute():
        raise UsageError(
            f"{folder} is the folder that holds the runs: what is in it would count as runs",
            f"name a folder of its own: runner unbundle FILE {shlex.quote(str(target / 'NAME'))}",
        )
    with tidy_at_sigterm():
        index = unpack.unpack(file, target, progress)
    is_under_runs = target.parent.parent == root.absolute()
    named = RunFolder(target).name if is_under_runs else str(target)
    return Unbundled(index, target, named, unpack.left_out(index))


def _own_name(index: Index, file: Path) -> Path:
    """Where a run lies under --runs; a name that runner does not give goes by the file's."""
    job, _, name = index.run.partition("/")
    given = job in (job_folder(job), earlier_job_folder(job))
    if given and is_run_name(name) and "/" not in name:  # and so no way out
        return Path(job, name)
    raise UsageError(
        f"{file} has no run's name: {index.run!a}",
        "name a folder: runner unbundle FILE FOLDER",
    )
