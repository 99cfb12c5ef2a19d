"""The kinds of plans by engine. Imports the models of the plans."""

from __future__ import annotations

from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.script.plan import ScriptPlan
from runner.engines.sft.plan import Plan
from runner.plans.base import PlanBase

PLANS: dict[str, type[PlanBase]] = {"sft": Plan, "script": ScriptPlan, "mgm": MgmPlan}
"""Engine -> what its plans are."""
