"""Stop a run: ask its supervisor to end it, in order or now, and wait until it has."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from runner.common.errors import RefusedError, RunnerError
from runner.common.processes import is_living
from runner.engines.render import read_any_plan
from runner.report.stopping import stop_in_words
from runner.runs.folder import RunFolder
from runner.runs.orphans import living_processes
from runner.runs.outcome import Reason
from runner.runs.records import supervisor_of
from runner.runs.state import LIVING, state_of
from runner.runs.supervisor_process import Found, find_supervisor, signal_supervisor

POLL_SECONDS = 0.2


def stop(folder: RunFolder, *, now: bool, say: Callable[[str], None]) -> None:
    """End a run and wait for it.

    Args:
        now: kill it at once instead of letting it save a checkpoint.
        say: is told what the stop does.

    Raises:
        RefusedError: the run does not run, belongs to another user, or what its folder names as its
            supervisor is not surely that.
    """
    state = state_of(folder)
    found = find_supervisor(folder)
    if found.pid is None:
        raise _nobody_to_ask(folder, state, found)
    supervisor = supervisor_of(folder)
    _ask(folder, times=2 if now else 1)
    what = "killing it" if now else f"{_in_words(folder)}; --now kills"
    if folder.queue.exists():
        what = "it only waits for a GPU"
    say(f"{folder.name}: {what}")
    while is_living(supervisor):
        time.sleep(POLL_SECONDS)


def _in_words(folder: RunFolder) -> str:
    """What the stop does; of a run whose plan can't be read, what every one does."""
    try:
        plan = read_any_plan(folder.plan)
    except RunnerError:
        return "it is asked to end in order"
    return stop_in_words(folder, plan)


def _nobody_to_ask(folder: RunFolder, state: str, found: Found) -> RefusedError:
    """Why nothing is signalled, and the way out."""
    if state in LIVING:
        return RefusedError(
            f"{folder.name} {found.why_not}; nothing was signalled",
            f"fuser {folder.lock} names who holds its lock; SIGTERM to that pid ends it in order",
        )
    left = living_processes(folder) if state == Reason.LOST else []
    if left:
        return RefusedError(
            f"{folder.name} is lost: nobody can end it in order, but pids {left} still live",
            f"kill {' '.join(map(str, left))} ends them; trainers among them save first",
        )
    return RefusedError(
        f"{folder.name} does not run: {state}",
        f"runner report {folder.name}; runner doctor --fix removes containers left behind",
    )


def _ask(folder: RunFolder, *, times: int) -> None:
    for number in range(times):
        if number:
            time.sleep(POLL_SECONDS)  # two signals at once would be one
        try:
            if signal_supervisor(folder, signal.SIGTERM).pid is None:
                return
        except PermissionError:
            raise RefusedError(f"{folder.name} was started by another user") from None
