"""The plan of a job of any engine. Gathers the facts that it depends on; imports no torch."""

from __future__ import annotations

from runner.engines.registry import engine_of
from runner.jobs.load import LoadedJob
from runner.plans.base import Plan, Variant
from runner.plans.facts import HostFacts


def make_any_plan(
    loaded: LoadedJob, variant: Variant = "train", max_steps: int | None = None
) -> tuple[Plan, HostFacts]:
    """The plan, and the facts that it was made of.

    Raises:
        SpecError, RefusedError: as the engine's own gathering and planning.
    """
    engine = engine_of(loaded.job)
    facts = engine.gather(loaded)
    return engine.resolve(loaded, facts, variant, max_steps), facts
