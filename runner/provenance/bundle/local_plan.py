"""Give the plan of an unbundled run the paths of its inputs on this machine.

Imports plans, runner.provenance and this package; no training library. The plan of a run that was
made here is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

from runner.common import durable
from runner.common.errors import UsageError
from runner.engines.inputs import found_here, parts, relocated
from runner.engines.registry import engine_of
from runner.engines.render import read_plan
from runner.engines.sft.plan import SftPlan
from runner.plans.base import Plan
from runner.provenance.bundle.index import read_beside
from runner.runs.folder import RunFolder


def plan_here(folder: RunFolder) -> SftPlan:
    """The plan of a native run, for what loads its model or rows again.

    Raises RunnerError where it can't be read.
    """
    plan = read_plan(folder.plan)
    if not durable.is_there(folder.bundle):
        return plan
    moved = placed_inputs(folder, plan, {})
    native: SftPlan | None = engine_of(moved).surveyed(moved)
    assert native is not None  # noqa: S101 - moved is of the plan's own engine
    return native


def placed_inputs(original: RunFolder, plan: Plan, given: Mapping[str, str]) -> Plan:
    """The plan with its inputs where `given` says, else in the run's own folder, else in caches.

    Raises UsageError where bundle.json is damaged or names what is no part of the plan.
    """
    index = read_beside(original.bundle)
    bundled = {
        what: str(original.path / at.path) for what, at in (index.places if index else {}).items()
    }
    unknown = sorted(set(bundled) - {part.what for part in parts(plan)})
    if unknown:
        raise UsageError(
            f"{original.bundle} has {unknown[0]}, which is no part of the plan beside it",
            "it is no bundle that runner made",
        )
    return found_here(relocated(plan, {**bundled, **given}))
