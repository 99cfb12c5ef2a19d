"""The engines, and the one of a job or plan. Imports the engines' light halves; no torch."""

from __future__ import annotations

from typing import Any

from runner.engines.base import Engine
from runner.engines.mgm.engine import MgmEngine
from runner.engines.script.engine import ScriptEngine
from runner.engines.sft.engine import SftEngine
from runner.jobs.base import Job
from runner.plans.base import Plan

ENGINES: dict[str, Engine[Any, Any]] = {
    engine.name: engine for engine in (SftEngine(), ScriptEngine(), MgmEngine())
}
"""Engine's name, as a job says it -> engine; the first is the one of jobs that name none."""


def engine_of(subject: Job | Plan) -> Engine[Any, Any]:
    """The engine of a job or a plan."""
    return ENGINES[subject.engine]
