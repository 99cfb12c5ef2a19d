"""Find out what state a run is in, from its folder, a pid with its start time, and a lock.

Imports the standard library, runner.common.durable, runner.common.processes and runner.runs. No
server is asked and nothing is cached: each call looks again.
"""

from __future__ import annotations

from runner.common import durable
from runner.common.processes import is_living
from runner.runs.folder import RunFolder
from runner.runs.outcome import Reason
from runner.runs.ranks import living_engines
from runner.runs.records import (
    object_at,
    read_outcome,
    started,
    supervisor_of,
    valid_result,
)

GONE = "gone"
"""There is no such folder (any more)."""
QUEUED, RUNNING, BY_HAND, NOT_STARTED = "queued", "running", "by_hand", "not_started"
LIVING = (QUEUED, RUNNING)


def state_of(folder: RunFolder) -> str:
    """The reason of its end, or else queued, running, lost, by_hand, not_started or gone.

    A word that is none of these is the reason that a newer runner gave.
    """
    said = _reason(folder)
    if said is not None:
        return said
    if durable.is_there(folder.bundle):  # nothing in it names a process of this machine
        return NOT_STARTED if folder.path.is_dir() else GONE
    living = live_state(folder)
    if living in LIVING:
        return living
    # it may have ended between the two looks, or have been removed
    return _reason(folder) or (living if durable.is_folder(folder.path) else GONE)


def live_state(folder: RunFolder) -> str:
    """State of a run without an outcome: queued, running, lost, by_hand (launch.sh), not_started.

    A supervisor is known by pid and start time, so a reused pid is not taken for it; and by the
    lock that it holds, where its pid means nothing here, or as long as it has not said its own.
    """
    if is_living(supervisor_of(folder)) or folder.is_supervised():
        return QUEUED if durable.is_there(folder.queue) else RUNNING
    if started(folder):
        return Reason.LOST.value
    if folder.engine_statuses():
        return BY_HAND
    return NOT_STARTED


def is_over(folder: RunFolder, state: str) -> bool:
    """Whether nothing more comes of a run: no supervisor, and no process that trains."""
    return state not in LIVING and not (state == BY_HAND and living_engines(folder))


def exit_code_of(folder: RunFolder, state: str) -> int:
    """The exit code of a run that is over; 1 where it left none (lost, or gone)."""
    if state == BY_HAND:
        return 0 if valid_result(object_at(folder.engine_result)).get("completed") else 1
    end = read_outcome(folder)
    return 1 if end is None else int(end["exit_code"])


def _reason(folder: RunFolder) -> str | None:
    end = read_outcome(folder)
    return None if end is None else str(end["reason"])
