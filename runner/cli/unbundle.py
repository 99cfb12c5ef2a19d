"""`runner unbundle`: unpack a bundle as a run of this machine. Imports no torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from runner.cli.bundle import tidy_at_sigterm, what_is_lacking
from runner.common.copy_progress import LiveLine
from runner.common.errors import UsageError
from runner.common.output import Output, field
from runner.common.units import format_bytes
from runner.provenance.bundle import unpack
from runner.provenance.bundle.index import Index
from runner.runs.find import default_root, is_run_name
from runner.runs.folder import RunFolder
from runner.runs.job_folders import earlier_job_folder, job_folder

_SHOWN = 5
"""Names of what was left out; --json has all."""


def unbundle_file(file: Path, folder: Path | None, *, runs: Path | None, as_json: bool) -> int:
    """0 once the run is there, every file of it checked.

    Raises:
        UsageError: the file is no whole bundle, or the folder is there already.
        RefusedError: the disk refuses.
    """
    out = Output(as_json=as_json)
    root = runs or default_root()
    target = folder if folder is not None else root / _own_name(unpack.read_index(file), file)
    target = target.absolute()
    if target == root.absolute():
        raise UsageError(
            f"{folder} is the folder that holds the runs: what is in it would count as runs",
            f"name a folder of its own: runner unbundle FILE {shlex.quote(str(target / 'NAME'))}",
        )
    line = LiveLine()
    try:
        with tidy_at_sigterm():
            index = unpack.unpack(
                file, target, lambda done, whole: line.bytes("checking", whole)(done)
            )
    finally:
        line.clear()
    run = RunFolder(target)
    named = run.name if target.parent.parent == root.absolute() else str(target)
    left_out = unpack.left_out(index)
    commands = [f"runner reproduce {shlex.quote(named)}", f"runner report {shlex.quote(named)}"]
    record: dict[str, Any] = {
        "schema_version": 1,
        "run": index.run,
        "folder": str(target),
        "plan_hash": index.plan_hash,
        "contains": list(index.contains),
        "files": len(index.members) - len(left_out),
        "left_out": left_out,
        "size_bytes": index.size_bytes,
        "image": index.image,
        "lacks": [lacking.model_dump(mode="json") for lacking in index.lacks],
        "notes": list(index.notes),
        "next": commands[0],
    }
    size = format_bytes(index.size_bytes)
    lines = [
        field("unbundled", f"{index.run}, plan {index.plan_hash[:7]}, made by {index.made_by}"),
        field("checked", f"{len(index.members)} files, {size}, each by its sha256"),
        field("run", str(target)),
        *_left_out_lines(left_out),
        *what_is_lacking(index),
        *(field("note", note) for note in index.notes),
        field("next", " · ".join(commands)),
    ]
    if index.lacks:
        lines.append(field("", "--at PART=PATH says where something is that it lacks"))
    out.result(record, lines)
    return 0


def _left_out_lines(paths: list[str]) -> list[str]:
    """What an earlier runner put into the bundle, and is not written here."""
    if not paths:
        return []
    shown = ", ".join(paths[:_SHOWN]) + (
        f" and {more} more" if (more := len(paths) - _SHOWN) > 0 else ""
    )
    why = "a run that came from elsewhere has no launch script and no outcome of its own"
    return [field("left out", f"{shown}: {why}")]


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
