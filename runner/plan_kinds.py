"""The kinds of plans by engine. Imports the models of the plans."""

from __future__ import annotations

from runner.plan import Plan
from runner.plan_base import PlanBase
from runner.plan_mgm import MgmPlan
from runner.plan_script import ScriptPlan

PLANS: dict[str, type[PlanBase]] = {"sft": Plan, "script": ScriptPlan, "mgm": MgmPlan}
"""Engine -> what its plans are."""
