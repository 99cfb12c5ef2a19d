"""List the trainings of any run, by asking the plan's engine."""

from __future__ import annotations

from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.runs.folder import RunFolder


def planned_trainings(folder: RunFolder, plan: Plan) -> dict[str, int | None]:
    """Name -> optimizer steps of each training, in order; empty where a run has but one."""
    return engine_of(plan).trainings(plan, folder)
