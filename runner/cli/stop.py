"""`runner stop RUN`: end a run, in order or now, and print how it ended."""

from __future__ import annotations

from pathlib import Path

from runner.common.output import Output, field
from runner.launch.stop import stop
from runner.report.outcome import ended_lines
from runner.runs.find import default_root, find_run
from runner.runs.records import read_outcome


def stop_run(run: str, *, now: bool, runs: Path | None, as_json: bool) -> int:
    """0 once the run has ended, however it did. Raises RefusedError as launch.stop."""
    out = Output(as_json=as_json)
    folder = find_run(run, runs or default_root())
    stop(folder, now=now, say=lambda text: out.say(field("stopping", text)))
    record = read_outcome(folder) or {}
    out.result({"run": folder.name, **record}, ended_lines(folder, record))
    return 0
