"""What a stop does to a run at this moment, in words: whether a checkpoint is saved, what stays.

Reads the run's records; imports runner.runs.folder, recorded, trainings and the plans.
"""

from __future__ import annotations

from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.sft.plan import Plan
from runner.engines.trainings import MGM, stage_now
from runner.plans.base import PlanBase
from runner.runs.folder import RunFolder
from runner.runs.records import status_of


def stop_in_words(folder: RunFolder, plan: PlanBase) -> str:
    """For "stopping": what is saved first, where anything is.

    The native engine saves from its first step on; the toolkit only where its trainer says so (its
    finetuning with DeepSpeed); of a script of the user's own only the script knows.
    """
    if isinstance(plan, Plan):
        if status_of(folder).get("phase") in (None, "training"):
            return "a checkpoint is saved first"
        return "it ends as soon as it can; a training saves a checkpoint first"
    if isinstance(plan, MgmPlan):
        return _of_the_toolkit(folder)
    return "the script is asked to end (SIGTERM); what it saves is its own affair"


def _of_the_toolkit(folder: RunFolder) -> str:
    now = stage_now(folder)
    if now.name in MGM and now.saves:
        return f"{now.name} saves a checkpoint of its last whole step first"
    if now.name in MGM:
        return (
            f"no checkpoint of {now.name} is saved, which can't go on from one: it begins anew; "
            "the stages that are done stay"
        )
    stage = f"stage {now.name} ends" if now.name else "it ends"
    return f"{stage} and is run again when the run goes on; the stages that are done stay"
