"""The plan of a job of any engine. Gathers the facts that it depends on; imports no torch."""

from __future__ import annotations

from runner.facts import HostFacts, gather, gather_host
from runner.job_mgm import MgmJob
from runner.job_script import ScriptJob
from runner.jobfile import LoadedJob
from runner.plan_base import PlanBase, Variant
from runner.resolve import make_plan
from runner.resolve_mgm import make_mgm_plan
from runner.resolve_script import gather_script, make_script_plan


def make_any_plan(
    loaded: LoadedJob, variant: Variant = "train", max_steps: int | None = None
) -> tuple[PlanBase, HostFacts]:
    """The plan, and the facts that it was made of.

    Raises:
        SpecError, RefusedError: as the engine's own gathering and planning.
    """
    if isinstance(loaded.job, ScriptJob):
        script = gather_script(loaded)
        return make_script_plan(loaded, script, variant, max_steps), script
    if isinstance(loaded.job, MgmJob):
        host = gather_host(loaded.job)
        return make_mgm_plan(loaded, host, variant, max_steps), host
    facts = gather(loaded)
    return make_plan(loaded, facts, variant, max_steps), facts
