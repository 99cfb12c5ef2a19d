"""`runner report RUN`: print what a run did, how it ended and why, as text or JSON."""

from __future__ import annotations

from pathlib import Path

from runner.common.output import Output
from runner.report.run import read_report
from runner.report.run_lines import report_lines
from runner.runs.find import default_root, find_run


def report_run(run: str, *, runs: Path | None, as_json: bool) -> None:
    """Print the report."""
    folder = find_run(run, runs or default_root())
    report = read_report(folder)
    Output(as_json=as_json).result(report, report_lines(report))
