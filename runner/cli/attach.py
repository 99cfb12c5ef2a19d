"""`runner attach RUN`: show the live view of an active run; Ctrl-C only ends the view."""

from __future__ import annotations

from pathlib import Path

from runner.common.output import Output, field
from runner.launch.follow import View, progress_of
from runner.launch.wait import states
from runner.report.outcome import ended_lines
from runner.runs.find import default_root, find_run
from runner.runs.folder import RunFolder
from runner.runs.records import read_outcome, supervisor_of
from runner.runs.state import exit_code_of, is_over, state_of


def attach_run(run: str, *, runs: Path | None, as_json: bool) -> int:
    """Show it until it ends, then its outcome; its exit code. 0 where Ctrl-C left it.

    Raises:
        RefusedError: nobody has started it.
        RunnerError: its folder was removed, or its plan is a newer runner's.
    """
    out = Output(as_json=as_json)
    folder = find_run(run, runs or default_root())
    state = state_of(folder)
    if not is_over(folder, state):
        started = supervisor_of(folder).get("started_unix_seconds")
        view = View(progress_of(folder, float(started or 0.0)), out)
        try:
            out.say(field("attached", f"{folder.name}; Ctrl-C leaves it; the run continues"))
            for state in states(folder):
                view.look(ended=is_over(folder, state))
        except KeyboardInterrupt:
            view.clear()
            return _left(folder, out)
    record = read_outcome(folder) or {}
    out.result(
        {"run": folder.name, "folder": str(folder.path), "state": state, **record},
        ended_lines(folder, record),
    )
    return exit_code_of(folder, state)


def _left(folder: RunFolder, out: Output) -> int:
    name = folder.name
    state = state_of(folder)
    out.result(
        {"run": name, "folder": str(folder.path), "state": state, "detached": True},
        [
            field("detached", f"{name} continues"),
            field("next", f"runner attach {name} shows it again · runner stop {name} ends it"),
        ],
    )
    return 0
