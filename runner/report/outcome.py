"""How a run ended, in the few lines that `train` ends with."""

from __future__ import annotations

from runner.report.outcome_lines import outcome_lines
from runner.report.run import read_report
from runner.runs.folder import RunFolder
from runner.runs.record_types import OutcomeRecord


def ended_lines(folder: RunFolder, record: OutcomeRecord) -> list[str]:
    """How a run ended, from its termination.json; one without it is described as it is."""
    return (
        outcome_lines(read_report(folder))
        if not record
        else outcome_lines(
            {
                "run": folder.name,
                "folder": str(folder.path),
                "state": record["reason"],
                "termination": record,
            }
        )
    )
