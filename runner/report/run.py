"""A run from its folder alone: what it was, how it ended and why, ready for JSON.

Imports runner.common, runs, engines, provenance and this package; no torch. A run whose supervisor
is gone without an outcome is `lost`, and the report shows what is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from runner.common import durable
from runner.common.errors import RunnerError
from runner.engines.mgm.progress import stage_now
from runner.engines.progress import planned_trainings
from runner.engines.render import read_any_plan, summary
from runner.engines.sft.plan import SftPlan
from runner.plans.base import Plan
from runner.provenance.bundle.index import maker_beside
from runner.provenance.bundle.local_plan import plan_here
from runner.report.losses import Losses
from runner.report.memory import read_memory
from runner.report.run_report import RunReport
from runner.report.run_table import kept_in, last_sign
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.runs.metrics import time_of
from runner.runs.orphans import living_processes
from runner.runs.outcome import Reason
from runner.runs.ranks import living_engines
from runner.runs.record_types import EventRecord
from runner.runs.records import object_at, read_outcome, record_problems, status_of
from runner.runs.resume_command import going_on
from runner.runs.state import BY_HAND, state_of

EVENTS_BYTES = 16 << 20
"""Of events.jsonl so much is reported: some hundred thousand warnings."""

UNFINISHED = tuple(reason for reason in Reason if reason is not Reason.COMPLETED)


def read_report(folder: RunFolder) -> RunReport:
    """Everything the report says, JSON-ready.

    Raises RunnerError where the folder has no readable plan.
    """
    plan = read_any_plan(folder.plan)
    planned = planned_trainings(folder, plan)
    losses = Losses.of(folder, planned)
    state = state_of(folder)
    termination = read_outcome(folder)
    kept = state in (Reason.LOST, *UNFINISHED) and kept_in(folder) is not None
    report: RunReport = {
        "schema_version": 1,
        "run": folder.name,
        "folder": str(folder.path),
        "job": plan.job,
        "variant": plan.variant,
        "plan_hash": plan.hash,
        "state": state,
        "came_in": _origin(folder),
        "plan": {
            "engine": getattr(plan, "engine", None),
            "lines": [[label, text] for label, text in summary(plan)],
            "substitutions": list(plan.substitutions),
        },
        "data": durable.read_json(folder.data_report),
        "result": object_at(folder.engine_result),
        "failure": object_at(folder.engine_failure) or None,
        "queue": object_at(folder.queue) or None,
        "losses": losses.to_record(),
        "trainings": losses.trainings(planned),
        "stage": stage_now(folder).name,
        "eval_loss": losses.eval_loss,
        "events": [
            event for event in durable.read_jsonl(folder.events, EVENTS_BYTES) if _is_told(event)
        ],
        "memory": read_memory(folder, termination or {}),
        "checkpoints": [path.name for path in checkpoints.listed(folder.checkpoints)],
        "termination": termination,
        "goes_on_by": going_on(folder) if kept else None,
        "damaged": record_problems(folder),
    }
    if state in (Reason.LOST, BY_HAND):
        report |= _traces(folder, plan, losses)
    return report


def _is_told(event: Mapping[str, object]) -> TypeGuard[EventRecord]:
    """Whether an event is one of those that people are told."""
    return (
        event.get("kind") in ("warning", "notice", "signal")
        and time_of(event) is not None
        and isinstance(event.get("text"), str)
    )


def _origin(folder: RunFolder) -> str | None:
    """Of a run that came in a bundle, who made it, in words; None of one that was made here."""
    if not durable.is_there(folder.bundle):
        return None
    maker = maker_beside(folder.bundle)
    return f"a bundle, made by {maker}; its outcome is what the bundle says"


def _traces(folder: RunFolder, plan: Plan, losses: Losses) -> RunReport:
    """What a run without an outcome left behind."""
    checkpoint, skipped = checkpoints.newest_whole(folder.checkpoints)
    step = losses.last_step
    saved = checkpoints.step_of(checkpoint) if checkpoint else 0
    return {
        "last_phase": status_of(folder).get("phase"),
        "last_sign_unix_seconds": last_sign(folder),
        "whole_checkpoint": checkpoint.name if checkpoint else None,
        "damaged_checkpoints": skipped,
        "steps_logged": step,
        "steps_lost": max(0, step - saved),
        "living_engines": living_engines(folder),
        "living_processes": living_processes(folder),
        "max_steps": plan.planned_steps,
    }


def require_plan(folder: RunFolder) -> SftPlan:
    """The plan of a run that a command needs whole (chat, say)."""
    try:
        return plan_here(folder)
    except RunnerError as error:
        raise type(error)(f"run {folder.name}: {error.message}", error.hint) from None
