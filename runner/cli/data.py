"""`runner data JOB`: clean, split and mix a job's rows without training, and report the result."""

from __future__ import annotations

from pathlib import Path

from runner.common import terminal
from runner.common.output import Output, field
from runner.launch.data import prepare_rows
from runner.launch.data_lines import report_lines
from runner.launch.jobs import load_job


def data_job(
    name: str, sets: list[str], *, sample: bool = False, out: Path | None = None, as_json: bool
) -> int:
    """0 where the rows are prepared, 2 for a wrong job or rows, 3 for what is lacking here.

    Arguments and refusals are those of launch.data.prepare_rows.
    """
    output = Output(as_json=as_json)
    loaded = load_job(name, sets)
    done = prepare_rows(loaded, output, sample=sample, out=out)
    told = {"job": loaded.name, "exit_code": done.exit_code}
    if done.is_refused:
        terminal.say("\n".join(done.answer["error"]))
        if as_json:
            output.result({"ok": False, **told, **done.answer}, [])
        return done.exit_code
    trainings = done.answer["trainings"]
    lines = [field("SUBSTITUTE", text) for text in done.substitutions]
    for training in trainings:
        lines += ["", field("phase", training["phase"])] if training["phase"] else []
        lines += report_lines(training["report"])
        if training["report"].get("left_out", {}).get("rows"):
            number, name = training["report"]["left_out"].values()
            where = Path(training["folder"]) / name
            lines.append(field("left out", f"{number:,} rows, each with its reason, in {where}"))
        lines.append(field("prepared", training["folder"]))
        lines += [field("written", path) for path in training["files"]]
    told |= {"substitutions": done.substitutions, "trainings": trainings}
    output.result({"ok": True, **told}, lines)
    return done.exit_code
