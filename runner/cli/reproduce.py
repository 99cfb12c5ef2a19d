"""`runner reproduce`: a run again from its manifest, and whether it is the same."""

from __future__ import annotations

from pathlib import Path

from runner.common.output import Output
from runner.launch.reproduce import reproduce
from runner.report.comparison import verdict_lines
from runner.report.outcome import ended_lines


def reproduce_run(
    run: str,
    *,
    steps: int | None,
    on: str | None,
    at: list[str],
    trust_code: bool = False,
    runs: Path | None,
    as_json: bool,
    unsafe: bool = False,
) -> int:
    """0 where the new run is identical, 1 where not; the new run's code where it did not end well.

    Arguments and refusals are those of runner.launch.reproduce.reproduce.
    """
    out = Output(as_json=as_json)
    found = reproduce(
        run, out, steps=steps, on=on, at=at, trust_code=trust_code, runs=runs, unsafe=unsafe
    )
    end, folder = found.end, found.folder
    for line in ended_lines(folder, end)[:1]:
        out.say(line)
    if found.compared is None:
        out.result({"run": folder.name, "identical": None, **end}, ended_lines(folder, end))
        return found.exit_code
    record = {**found.compared.record(), "folder": str(folder.path)}
    out.result(record, verdict_lines(found.compared))
    return 0 if found.compared.first is None else 1
