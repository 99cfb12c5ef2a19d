"""After a run ran out of memory, reduce its memory by one step and resume from its last checkpoint.

Imports no torch. attempts/N in the run folder keeps the plan, the rendered files and the outcome of
each attempt. The run continues in the folder itself, with a plan that names what it replaces.
"""

from __future__ import annotations

from runner.engines.render import render
from runner.plans.base import Plan
from runner.runs.folder import RunFolder, numbers
from runner.runs.outcome import Outcome
from runner.runs.record_types import AttemptRecord


def put_in_place(folder: RunFolder, plan: Plan, before: Plan, outcome: Outcome) -> int:
    """Keep what the attempt was, and render the new plan in its place; the attempt's number.

    The plan is written last: a kill in between leaves the old plan whole, by which the next start
    goes on. Of the other files a step down changes comments alone.
    """
    folder.make_folder(folder.attempts)
    number = 1 + max(numbers(folder.names(folder.attempts)), default=0)
    place = folder.attempt(number)
    staging = place.parent / f".{place.name}"
    folder.remove(staging)
    folder.make_folder(staging)
    for name, text in render(before).items():  # what its script was; not what it left of it
        folder.write_file(staging / name, text)
    folder.write_json(staging / folder.termination.name, outcome.to_record())
    for left in (folder.engine_failure, folder.engine_result, folder.prediction):
        if folder.is_there(left):  # the next attempt must not be judged by it
            folder.move(left, staging / left.name)
    folder.move(staging, place)
    folder.write_rendered(render(plan))
    return number


def attempt_record(number: int, outcome: Outcome, step: str) -> AttemptRecord:
    """What termination.json says of an attempt that was recovered from."""
    return {
        "attempt": number,
        "reason": outcome.reason.value,
        "message": outcome.message,
        "steps": outcome.steps,
        "peak_bytes": outcome.peak_bytes,
        "peak_source": outcome.peak_source,
        "checkpoint": outcome.checkpoint,
        "then": step,
    }
