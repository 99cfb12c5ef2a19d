"""`runner evaluate`: measure a run or a model, and print the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.common.output import Output
from runner.launch.evaluate import evaluate
from runner.report.evaluation import evaluation_lines


def evaluate_run(
    target: str,
    *,
    job: str | None,
    sets: Sequence[str],
    data: Sequence[Path],
    base: bool,
    max_rows: int | None,
    trust_code: bool = False,
    runs: Path | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """0 done, 2 bad input, 3 the machine lacks something, 130 stopped.

    Arguments and refusals are those of runner.launch.evaluate.evaluate.
    """
    output = Output(as_json=as_json)
    found = evaluate(
        target,
        output,
        job=job,
        sets=sets,
        data=data,
        base=base,
        max_rows=max_rows,
        trust_code=trust_code,
        runs=runs,
        out=out,
    )
    if found.record:
        lines = evaluation_lines(found.record, found.folder)
        output.result({**found.record, "folder": str(found.folder)}, lines)
    return found.exit_code
