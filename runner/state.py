"""What state a run is in, from its folder, a pid with its start time, and a lock.

Imports the standard library and runner.durable, folder, liveness, outcome. No server is asked, and
nothing is remembered: who looks, looks anew.
"""

from __future__ import annotations

from runner import durable
from runner.folder import RunFolder
from runner.liveness import is_living, living_engines
from runner.outcome import Reason

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
    living = live_state(folder)
    if living in LIVING:
        return living
    # it may have ended between the two looks, or have been removed
    return _reason(folder) or (living if folder.path.is_dir() else GONE)


def live_state(folder: RunFolder) -> str:
    """State of a run without a verdict: queued, running, lost, by_hand (launch.sh), not_started.

    A supervisor is known by pid and start time, so a reused pid is not taken for it; and by the
    lock that it holds, where its pid means nothing here, or as long as it has not said its own.
    """
    supervisor = durable.read_json(folder.supervisor)
    living = isinstance(supervisor, dict) and is_living(supervisor)
    if living or folder.is_supervised():
        return QUEUED if folder.queue.exists() else RUNNING
    if isinstance(supervisor, dict):
        return Reason.LOST.value
    if any(folder.engine.glob("rank-*.json")):
        return BY_HAND
    return NOT_STARTED


def is_over(folder: RunFolder, state: str) -> bool:
    """Whether nothing more comes of a run: no supervisor, and no process that trains."""
    return state not in LIVING and not (state == BY_HAND and living_engines(folder))


def exit_code_of(folder: RunFolder, state: str) -> int:
    """The exit code of a run that is over; 1 where it left none (lost, or gone)."""
    if state == BY_HAND:
        result = durable.read_json(folder.engine_result)
        return 0 if isinstance(result, dict) and result.get("completed") else 1
    end = durable.read_json(folder.termination)
    code = end.get("exit_code") if isinstance(end, dict) else None
    return code if isinstance(code, int) else 1


def _reason(folder: RunFolder) -> str | None:
    end = durable.read_json(folder.termination)
    return str(end.get("reason")) if isinstance(end, dict) else None
