"""`runner stop RUN`: ask its supervisor to end it, in order or now, and wait for the verdict."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from runner.cli.output import Output, field
from runner.cli.report import verdict_lines
from runner.errors import RefusedError
from runner.folder import RunFolder, default_root, find_run
from runner.liveness import host_pid, is_living
from runner.outcome import Reason
from runner.recorded import end_of, supervisor_of
from runner.state import LIVING, state_of
from runner.survivors import living_processes

POLL_SECONDS = 0.2


def stop_run(run: str, *, now: bool, runs: Path | None, as_json: bool) -> int:
    """0 once the run has ended, whatever its verdict.

    Args:
        now: kill it at once instead of letting it save a checkpoint.

    Raises:
        RefusedError: the run does not run, or belongs to another user.
    """
    out = Output(as_json=as_json)
    folder = find_run(run, runs or default_root())
    supervisor, state = supervisor_of(folder), state_of(folder)
    if state in LIVING and not is_living(supervisor):
        raise RefusedError(
            f"{folder.name} is {state}, but its supervisor.json does not say by which process: "
            "it only starts, is of another container, or its record is damaged",
            f"fuser {folder.lock} names who holds it; SIGTERM to that pid ends the run in order",
        )
    left = living_processes(folder) if state == Reason.LOST else []
    if left:
        raise RefusedError(
            f"{folder.name} is lost: nobody can end it in order, but pids {left} still live",
            f"kill {' '.join(map(str, left))} ends them; trainers among them save first",
        )
    if state not in LIVING:
        raise RefusedError(
            f"{folder.name} does not run: {state}",
            f"runner report {folder.name}; runner doctor --fix removes containers left behind",
        )
    _ask(folder, supervisor, times=2 if now else 1)
    what = "killing it" if now else "a checkpoint is saved first; --now kills"
    if folder.queue.exists():
        what = "it only waits for a GPU"
    out.say(field("stopping", f"{folder.name}: {what}"))
    while is_living(supervisor):
        time.sleep(POLL_SECONDS)
    record = end_of(folder) or {}
    out.result({"run": folder.name, **record}, verdict_lines(folder, record))
    return 0


def _ask(folder: RunFolder, supervisor: dict[str, object], *, times: int) -> None:
    for number in range(times):
        if number:
            time.sleep(POLL_SECONDS)  # two signals at once would be one
        try:
            pid = host_pid(supervisor)
            if pid is None:
                return
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            raise RefusedError(f"{folder.name} was started by another user") from None
