"""List the runs of a runs folder, and the containers that lost ones left. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import RunnerError
from runner.containers.cli import find_cli
from runner.containers.orphans import container_of_run
from runner.report.run_table import RunSummary, standings
from runner.runs.find import all_runs
from runner.runs.folder import RunFolder
from runner.runs.outcome import Reason
from runner.runs.records import object_at


@dataclass(frozen=True)
class ListedRuns:
    """Runs at one moment, oldest first."""

    runs: list[RunSummary]
    containers: dict[str, str]
    """Folder -> name of the container that a lost run left."""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        runs = [
            {**one.to_record(), "container": self.containers.get(one.folder)} for one in self.runs
        ]
        return {"schema_version": 1, "runs": runs}


def runs_under(root: Path, now: float, *, everything: bool = False) -> ListedRuns:
    """The running and lost runs under `root` as of `now` (unix seconds); with `everything` all."""
    found = standings(all_runs(root), all_runs=everything, now=now)
    return ListedRuns(found, _containers_left(found))


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
