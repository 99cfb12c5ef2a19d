"""One step down in memory for a plan that ran out of it, with the same mathematics. Pure, but for
looking which trainings of the run are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.engines.sft.memory.ladder import STEPPED_DOWN, step_down
from runner.engines.sft.plan import PlannedPhase, SftPlan
from runner.jobs.training import TrainingSettings
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason

RECOVERABLE = (Reason.CUDA_OOM, Reason.OVER_BUDGET)


def next_plan(plan: SftPlan, outcome: Outcome, folder: RunFolder) -> tuple[SftPlan, str] | None:
    """The plan one step down, and the step in words; None where the run is over.

    It is over unless the job says on_oom: recover, memory was the reason, and a step is left.
    """
    if plan.on_oom != "recover" or plan.variant == "dry_run":
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
    plan: SftPlan, settings: Sequence[TrainingSettings], substitutions: Sequence[str]
) -> SftPlan:
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
