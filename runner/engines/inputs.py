"""List the inputs of any plan and their paths; make the same plan with other paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.plans.inputs import Key, Part


def parts(plan: Plan) -> list[Part]:
    """Everything that a plan reads by a path, each part once."""
    return engine_of(plan).parts(plan)


def relocated(plan: Plan, places: Mapping[str, str]) -> Plan:
    """The plan with each of the parts in `places` where they say.

    `python` is the interpreter. Raises KeyError for a name that is no part of the plan.
    """
    record = plan.model_dump(mode="json")
    keys = {part.what: part.keys for part in parts(plan)}
    engine = engine_of(plan)
    keys["python"] = engine.python_keys
    for what, path in places.items():
        for key in keys[what]:
            _set(record, key, path)
    moved: Plan = engine.plan_type.model_validate(record)
    return moved


def found_here(plan: Plan) -> Plan:
    """The plan with what comes from a hub where it lies on this machine, if not where it lay."""
    return relocated(plan, engine_of(plan).found_here(plan))


def _set(record: Any, key: Key, value: str) -> None:
    for step in key[:-1]:
        record = record[step]
    record[key[-1]] = value
