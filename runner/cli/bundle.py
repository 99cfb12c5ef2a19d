"""`runner bundle`: pack a run into one file, and print what it holds and lacks."""

from __future__ import annotations

from pathlib import Path

from runner.common.copy_progress import LiveLine
from runner.common.output import Output, field
from runner.common.units import format_bytes
from runner.launch.bundle import bundle
from runner.report.bundle import what_is_lacking, what_it_holds


def bundle_run(
    run: str, include: str, *, out: Path | None, force: bool, runs: Path | None, as_json: bool
) -> int:
    """0 once the bundle is written. Arguments and refusals are those of launch.bundle."""
    output = Output(as_json=as_json)
    line = LiveLine()
    try:
        done = bundle(
            run,
            output,
            lambda so_far, whole: line.bytes("bundling", whole)(so_far),
            include=include,
            out=out,
            force=force,
            runs=runs,
        )
    finally:
        line.clear()
    index, path = done.index, done.path
    lines = [
        field("bundled", f"{index.run}, plan {index.plan_hash[:7]}"),
        field("holds", what_it_holds(index)),
        *what_is_lacking(index),
        *(field("note", note) for note in index.notes),
        field("file", f"{path}  {format_bytes(done.size_bytes)}  sha256 {done.sha256}"),
        field("next", f"there: runner unbundle {path.name}"),
    ]
    output.result(done.to_record(), lines)
    return 0
