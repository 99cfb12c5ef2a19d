"""`runner unbundle`: unpack a bundle as a run of this machine, and print what it lacks."""

from __future__ import annotations

import shlex
from pathlib import Path

from runner.common.copy_progress import LiveLine
from runner.common.output import Output, field
from runner.common.units import format_bytes
from runner.launch.unbundle import unbundle
from runner.report.bundle import what_is_lacking

_SHOWN = 5
"""Names of what was left out; --json has all."""


def unbundle_file(file: Path, folder: Path | None, *, runs: Path | None, as_json: bool) -> int:
    """0 once the run is there. Arguments and refusals are those of launch.unbundle."""
    line = LiveLine()
    try:
        done = unbundle(
            file,
            lambda so_far, whole: line.bytes("checking", whole)(so_far),
            folder=folder,
            runs=runs,
        )
    finally:
        line.clear()
    index = done.index
    size = format_bytes(index.size_bytes)
    commands = [done.reproduce_command, f"runner report {shlex.quote(done.named)}"]
    lines = [
        field("unbundled", f"{index.run}, plan {index.plan_hash[:7]}, made by {index.made_by}"),
        field("checked", f"{len(index.members)} files, {size}, each by its sha256"),
        field("run", str(done.folder)),
        *_left_out_lines(done.left_out),
        *what_is_lacking(index),
        *(field("note", note) for note in index.notes),
        field("next", " · ".join(commands)),
    ]
    if index.lacks:
        lines.append(field("", "--at PART=PATH says where something is that it lacks"))
    Output(as_json=as_json).result(done.to_record(), lines)
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
