"""`runner stop RUN`: ask its supervisor to end it, in order or now, and wait for the verdict."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from runner import durable
from runner.cli.output import Output, field
from runner.cli.report import verdict_lines
from runner.errors import RefusedError
from runner.folder import RunFolder, default_root, find_run
from runner.liveness import is_living
from runner.state import state_of

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
    supervisor = durable.read_json(folder.supervisor) or {}
    if folder.termination.exists() or not is_living(supervisor):
        raise RefusedError(
            f"{folder.name} does not run: {state_of(folder)}",
            f"runner report {folder.name}; runner doctor --fix removes containers left behind",
        )
    _ask(folder, supervisor, times=2 if now else 1)
    what = "killing it" if now else "a checkpoint is saved first; --now kills"
    if folder.queue.exists():
        what = "it only waits for a GPU"
    out.say(field("stopping", f"{folder.name}: {what}"))
    while is_living(supervisor):
        time.sleep(POLL_SECONDS)
    record: dict[str, Any] = durable.read_json(folder.termination) or {}
    out.result({"run": folder.name, **record}, verdict_lines(folder, record))
    return 0


def _ask(folder: RunFolder, supervisor: dict[str, Any], *, times: int) -> None:
    for number in range(times):
        if number:
            time.sleep(POLL_SECONDS)  # two signals at once would be one
        try:
            os.kill(int(supervisor["pid"]), signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            raise RefusedError(f"{folder.name} was started by another user") from None
