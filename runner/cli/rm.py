"""`runner rm RUN...`: remove runs that have ended, with their folders, after asking."""

from __future__ import annotations

from pathlib import Path

from runner.cli.confirm import confirmed
from runner.common.output import Output, field
from runner.common.units import format_bytes
from runner.runs.delete import disk_bytes, locked_for_removal, remove_run, sweep
from runner.runs.find import default_root, find_run
from runner.runs.state import state_of


def remove_runs(names: list[str], *, yes: bool, runs: Path | None, as_json: bool) -> int:
    """0 once they are gone, 1 where the answer was no.

    Raises:
        UsageError: no such run, or nobody can be asked.
        RefusedError: one of them runs or waits; then none is removed.
    """
    root, out = runs or default_root(), Output(as_json=as_json)
    folders = list({(run := find_run(name, root)).path: run for name in names}.values())
    for folder in folders:
        with locked_for_removal(folder):
            pass  # whether it may be removed, before anybody is asked
    sizes = {folder.name: disk_bytes(folder.path) for folder in folders}
    for folder in folders:
        size = format_bytes(sizes[folder.name])
        out.say(field("remove", f"{folder.name} ({state_of(folder)}, {size})"))
    what = "it" if len(folders) == 1 else f"these {len(folders)} runs"
    if not confirmed(f"Remove {what} for good?", yes=yes):
        out.result({"removed": [], "freed_bytes": 0}, ["nothing was removed"])
        return 1
    for folder in folders:
        with locked_for_removal(folder):  # somebody may have resumed it meanwhile
            remove_run(folder)
    sweep(root)
    freed = sum(sizes.values())
    gone = [folder.name for folder in folders]
    out.result(
        {"removed": gone, "freed_bytes": freed},
        [f"removed {', '.join(gone)}: {format_bytes(freed)} are free again"],
    )
    return 0
