"""The smoke of a job on the MGM toolkit where toolkit, weights or rows are not on this machine.

Its commands are checked against the flags that the toolkit's real parser takes, and its nearest
relative that runs natively is smoked in its place. Every report says exactly that.
"""

from __future__ import annotations

from dataclasses import replace

from runner.engine.mgm.command import parser_problems, recorded_flags, stage_flags
from runner.errors import RefusedError, RunnerError
from runner.facts import Facts, HostFacts, gather
from runner.job_mgm import MgmJob
from runner.jobfile import LoadedJob, load_job
from runner.plan import Plan
from runner.plan_base import PlanBase
from runner.plan_mgm import MgmPlan
from runner.resolve import make_plan
from runner.resolve_kinds import make_any_plan
from runner.resolve_mgm import absent

STAND_IN = "llava-gemma-10k-lora"
"""Gemma behind a CLIP tower, trained in the same two stages: MGM without its ConvNeXt branch."""


def smoke_plan(loaded: LoadedJob, max_steps: int) -> tuple[PlanBase, HostFacts, str | None]:
    """The smoke's plan, and why the toolkit itself can't be smoked here; None where it can.

    Raises:
        RefusedError: as the planning; not for an image of the toolkit that is not there.
    """
    try:
        plan, facts = make_any_plan(loaded, "smoke", max_steps)
    except RefusedError as error:
        if not isinstance(loaded.job, MgmJob) or loaded.job.launch.on == "local":
            raise
        here = loaded.job.model_copy(
            update={"launch": loaded.job.launch.model_copy(update={"on": "local"})}
        )
        plan, facts = make_any_plan(replace(loaded, job=here), "smoke", max_steps)
        return plan, facts, error.message
    missing = absent(plan.mgm) if isinstance(plan, MgmPlan) else []
    if not missing:
        return plan, facts, None
    return plan, facts, "not on this machine: " + ", ".join(each.field for each in missing)


def checked_flags(plan: MgmPlan) -> int:
    """How many flags of both trainings the toolkit's real parser takes, by its recorded list.

    Raises:
        RunnerError: it would refuse some of them.
    """
    recorded, count = recorded_flags(), 0
    for stage in ("pretrain", "finetune"):
        flags = stage_flags(plan.mgm, stage)
        if problems := parser_problems(flags, recorded):
            raise RunnerError(f"the toolkit's parser refuses the {stage} command: {problems[0]}")
        count += len(flags)
    return count


def stand_in(loaded: LoadedJob, plan: MgmPlan, why: str, max_steps: int) -> tuple[Plan, Facts]:
    """The plan of the native stand-in, named as this job's, which says what it stands for."""
    count = checked_flags(plan)
    assert isinstance(loaded.job, MgmJob)  # noqa: S101 - the caller has looked
    native = load_job(
        STAND_IN, [f"launch.on={loaded.job.launch.on}", f"launch.device={loaded.job.launch.device}"]
    )
    facts = gather(native)
    other = make_plan(native, facts, "smoke", max_steps)
    lines = [
        f"native {STAND_IN} in place of the MGM toolkit, which was not run ({why})",
        f"of MGM itself {count} flags of the rendered commands were checked against the recorded "
        "list of its real parser, and nothing else",
    ]
    return (
        other.model_copy(
            update={"job": loaded.name, "substitutions": [*lines, *other.substitutions]}
        ),
        facts,
    )
