"""`runner wait RUN...`: block until runs have ended; exit with the first code that is not 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.common.output import Output, field
from runner.launch.wait import states
from runner.runs.find import default_root, find_run
from runner.runs.folder import RunFolder
from runner.runs.records import read_outcome
from runner.runs.state import exit_code_of


def wait_for(names: list[str], *, runs: Path | None, as_json: bool) -> int:
    """The exit code of the run; of several the first that is not 0, in the order given.

    Raises:
        RefusedError, RunnerError: as until_over.states.
    """
    root, out = runs or default_root(), Output(as_json=as_json)
    folders = [find_run(name, root) for name in names]  # a wrong name is answered at once
    records: list[dict[str, Any]] = []
    for folder in folders:
        records.append(_wait(folder))
        if not as_json:
            out.result(None, [_line(records[-1])])
    code = next((int(each["exit_code"]) for each in records if each["exit_code"]), 0)
    if as_json:
        out.result({"schema_version": 1, "exit_code": code, "runs": records}, [])
    return code


def _wait(folder: RunFolder) -> dict[str, Any]:
    state = ""
    for state in states(folder):  # noqa: B007 - the last one is what it ended in
        pass
    end = read_outcome(folder)
    return {
        "run": folder.name,
        "state": state,
        "exit_code": exit_code_of(folder, state),
        "message": None if end is None else end["message"],
    }


def _line(record: dict[str, Any]) -> str:
    said = f": {record['message']}" if record["message"] else ""
    return field(record["state"], f"{record['run']} (exit code {record['exit_code']}){said}")
