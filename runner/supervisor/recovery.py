"""After a run ran out of memory: one step down, and on from its last checkpoint. No torch.

What was tried lies under attempts/N in the run folder: the plan, its rendered files and the verdict
of each attempt. The run goes on in the folder itself, by a plan that says what it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.engines.render import render
from runner.engines.sft.memory.ladder import STEPPED_DOWN, step_down
from runner.engines.sft.plan import Plan, PlannedPhase
from runner.jobs.training import TrainingSettings
from runner.plans.base import PlanBase
from runner.runs.folder import RunFolder, numbers
from runner.runs.outcome import Outcome, Reason

RECOVERABLE = (Reason.CUDA_OOM, Reason.OVER_BUDGET)


def next_plan(plan: PlanBase, outcome: Outcome, folder: RunFolder) -> tuple[Plan, str] | None:
    """The plan one step down, and the step in words; None where the run is over.

    It is over unless the job says on_oom: recover, memory was the reason, and a step is left.
    """
    if not isinstance(plan, Plan) or plan.on_oom != "recover" or plan.variant == "dry_run":
        return None
    if outcome.reason not in RECOVERABLE:
        return None
    changed: list[Any] = []
    told: list[str] = []
    for part in plan.trainings:
        done = part.phase and (folder.phase(part.phase) / "result.json").is_file()
        step = None if done else step_down(part)
        changed.append(part.training if step is None else step[0])
        if step is not None:
            told.append(f"{part.phase}: {step[1]}" if part.phase else step[1])
    if not told:
        return None
    text = "; ".join(told)
    why = f"{outcome.reason.value} at step {outcome.steps}"
    return with_steps_down(plan, changed, [*plan.substitutions, f"{text}, after {why}"]), text


def with_steps_down(
    plan: Plan, settings: Sequence[TrainingSettings], substitutions: Sequence[str]
) -> Plan:
    """The plan with what a step down changes, of these settings of each of its trainings."""
    trainings = [
        part.training.model_copy(update={name: getattr(given, name) for name in STEPPED_DOWN})
        for part, given in zip(plan.trainings, settings, strict=True)
    ]
    earlier = [
        PlannedPhase.model_validate({**phase.model_dump(), "training": training.model_dump()})
        for phase, training in zip(plan.earlier, trainings[:-1], strict=True)
    ]
    return plan.model_copy(
        update={
            "earlier": earlier,
            "training": trainings[-1],
            "recovered_from": plan.recovered_from or plan.hash,
            "substitutions": list(substitutions),
        }
    )


def put_in_place(folder: RunFolder, plan: Plan, before: PlanBase, outcome: Outcome) -> int:
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


def attempt_record(number: int, outcome: Outcome, step: str) -> dict[str, Any]:
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
