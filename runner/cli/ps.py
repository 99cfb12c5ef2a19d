"""`runner ps`: list running and lost runs; with --all those that have ended too."""

from __future__ import annotations

import time
from pathlib import Path

from runner.common.output import Output, table
from runner.launch.ps import ListedRuns, runs_under
from runner.report.run_table import HEADER, notes, row
from runner.runs.find import default_root
from runner.runs.outcome import Reason

GOING_ON = 3
"""For so many of the newest runs that ended early, the command that resumes is shown."""


def list_runs(*, everything: bool, runs: Path | None, as_json: bool) -> None:
    """Print a row for each run under the runs folder, oldest first."""
    root, now = runs or default_root(), time.time()
    listed = runs_under(root, now, everything=everything)
    lines = _lines(listed, root, now, everything=everything)
    Output(as_json=as_json).result(listed.to_record(), lines)


def _lines(listed: ListedRuns, root: Path, now: float, *, everything: bool) -> list[str]:
    found, left = listed.runs, listed.containers
    if not found and everything:
        return [f"there is no run under {root}"]
    if not found:
        return [f"no run lives under {root}; --all shows those that have ended"]
    lines = table(HEADER, [row(one, now) for one in found])
    ended = [one.run for one in found if one.goes_on_by and one.state != Reason.LOST]
    long_ago = set(ended[:-GOING_ON])
    said = [text for one in found for text in notes(one, now, going_on=one.run not in long_ago)]
    said += [
        f"{one.run}: its container {left[one.folder]} is still there; runner doctor --fix ends it"
        for one in found
        if one.folder in left
    ]
    return [*lines, *([""] if said else []), *said]
