"""`runner verify` and `runner diff`: compare two runs by their manifests."""

from __future__ import annotations

from pathlib import Path

from runner.common.output import Output
from runner.launch.compare import compare_runs
from runner.report.comparison import diff_lines, verdict_lines


def verify_runs(run: str, other: str, *, runs: Path | None, as_json: bool) -> int:
    """0 where they are identical, 1 where they differ."""
    compared = compare_runs(run, other, runs=runs)
    Output(as_json=as_json).result(compared.record(), verdict_lines(compared))
    return 0 if compared.first is None else 1


def diff_runs(run: str, other: str, *, runs: Path | None, as_json: bool) -> int:
    """0, whatever it finds."""
    compared = compare_runs(run, other, runs=runs)
    Output(as_json=as_json).result(compared.record(), diff_lines(compared))
    return 0
