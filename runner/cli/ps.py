"""`runner ps`: list running and lost runs; with --all those that have ended too."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from runner.common.errors import RunnerError
from runner.common.output import Output, table
from runner.containers.cli import find_cli
from runner.containers.orphans import container_of_run
from runner.report.run_table import HEADER, RunSummary, notes, row, standings
from runner.runs.find import all_runs, default_root
from runner.runs.folder import RunFolder
from runner.runs.outcome import Reason
from runner.runs.records import object_at

GOING_ON = 3
"""For so many of the newest runs that ended early, the command that resumes is shown."""


def list_runs(*, everything: bool, runs: Path | None, as_json: bool) -> None:
    """Print a row for each run under the runs folder, oldest first."""
    root, now = runs or default_root(), time.time()
    found = standings(all_runs(root), all_runs=everything, now=now)
    left = _containers_left(found)
    record = {
        "schema_version": 1,
        "runs": [{**one.to_record(), "container": left.get(one.folder)} for one in found],
    }
    Output(as_json=as_json).result(record, _lines(found, left, root, now, everything=everything))


def _lines(
    found: list[RunSummary], left: dict[str, str], root: Path, now: float, *, everything: bool
) -> list[str]:
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


def _containers_left(found: Iterable[RunSummary]) -> dict[str, str]:
    """Folder -> name of the container that a lost run left, by its label."""
    left: dict[str, str] = {}
    cli = find_cli()  # never what a run's records name: anybody can write those
    if cli is None:
        return left
    for one in found:
        folder = RunFolder(Path(one.folder))
        if one.state != Reason.LOST or not object_at(folder.container):
            continue
        try:
            container = container_of_run(cli, folder.path)
        except (RunnerError, OSError):
            break  # no daemon answers: what it runs can't be told
        if container is not None:
            left[one.folder] = container.name
    return left
