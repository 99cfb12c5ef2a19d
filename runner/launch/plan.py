"""Make the plan of a start or a smoke from a job; fetch or make what it needs. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.common.output import Output, field
from runner.engines.load import load_job
from runner.engines.registry import engine_of
from runner.engines.sft.plan import SftPlan
from runner.jobs.load import LoadedJob
from runner.launch.preflight import fetch_missing, make_stand_in, require_place
from runner.plans.base import Plan, Variant
from runner.plans.facts import HostFacts


def planned(
    loaded: LoadedJob, variant: Variant, max_steps: int | None, out: Output
) -> tuple[Plan, HostFacts]:
    """The plan with all that it needs on this machine, fetched where it was not.

    Raises:
        SpecError, RefusedError: what is lacking, and the way out.
    """
    engine = engine_of(loaded.job)
    facts = engine.gather(loaded)
    engine.require_inputs(loaded, facts)
    engine.require_packages(loaded.job, facts.place)
    if fetch_missing(loaded, facts, out):
        facts = engine.gather(loaded)
    return engine.resolve(loaded, facts, variant, max_steps), facts


def planned_start(
    loaded: LoadedJob, variant: Variant, max_steps: int | None, out: Output, runs: Path | None
) -> tuple[Plan, HostFacts]:
    """The plan of a start, looked at by its engine before anything is started. As `planned`."""
    plan, facts = planned(loaded, variant, max_steps, out)
    looked = engine_of(plan).look_before(loaded, plan, out.say, images=False, runs=runs)
    for line in looked.warnings:
        out.say(field("WARNING", line))
    return plan, facts


def planned_smoke(
    loaded: LoadedJob,
    max_steps: int,
    out: Output,
    runs: Path | None,
    settle: Callable[[Plan], None],
) -> tuple[Plan, HostFacts]:
    """A smoke's plan and facts, its stand-ins made once `settle` has let the plan pass.

    Raises:
        SpecError, RefusedError: as `planned`.
    """
    engine = engine_of(loaded.job)
    plan, facts = engine.plan_smoke(
        loaded,
        max_steps,
        fetch=lambda found: fetch_missing(loaded, found, out, required=False),
        load=load_job,
    )
    if plan.engine == engine.name:  # and none that stands in for it
        engine.look_before(loaded, plan, out.say, images=False, runs=runs)
    settle(plan)
    require_place(plan, facts)
    native: SftPlan | None = engine_of(plan).surveyed(plan)
    if native is not None:
        make_stand_in(native, out)
    return plan, facts
