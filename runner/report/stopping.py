"""What a stop does to a run at this moment, in words: whether a checkpoint is saved, what stays."""

from __future__ import annotations

from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.runs.folder import RunFolder


def stop_in_words(folder: RunFolder, plan: Plan) -> str:
    """For "stopping": what is saved first, where anything is, as the plan's engine knows it."""
    return engine_of(plan).explain_stop(plan, folder)
