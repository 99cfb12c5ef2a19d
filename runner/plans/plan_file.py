"""A plan as the text of plan.yaml. Pure; imports pyyaml."""

from __future__ import annotations

import yaml

from runner.plans.base import Plan
from runner.plans.render import BlockDumper


def plan_yaml(plan: Plan) -> str:
    """The plan as YAML, its hash first."""
    record = {"plan_hash": plan.hash, **plan.model_dump(mode="json")}
    return yaml.dump(record, Dumper=BlockDumper, sort_keys=False, allow_unicode=True, width=100)
