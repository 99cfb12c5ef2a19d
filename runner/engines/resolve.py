"""The plan of a job of any engine. Gathers the facts that it depends on; imports no torch."""

from __future__ import annotations

from runner.engines.mgm.job import MgmJob
from runner.engines.mgm.resolve import make_mgm_plan
from runner.engines.script.job import ScriptJob
from runner.engines.script.resolve import gather_script, make_script_plan
from runner.engines.sft.resolve import make_plan
from runner.jobs.load import LoadedJob
from runner.plans.base import PlanBase, Variant
from runner.plans.facts import HostFacts, gather, gather_host


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
