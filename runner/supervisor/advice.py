"""The cheapest changes that would have fitted a run that ran out of memory. Asks its engine."""

from __future__ import annotations

from runner.common import durable
from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from runner.supervisor.event_log import EventLog


def advise(folder: RunFolder, plan: Plan, outcome: Outcome, record: EventLog) -> tuple[str, ...]:
    """Up to three changes in words, the cheapest first. Empty where memory was not the matter."""

    def warn(text: str) -> None:
        record.event("notice", text)

    limit = _limit(folder, plan, outcome)
    return engine_of(plan).advise(plan, outcome, folder, limit, warn)


def _limit(folder: RunFolder, plan: Plan, outcome: Outcome) -> int | None:
    """Bytes that the run should have kept to; None where memory was not the matter."""
    if not _out_of_memory(plan, outcome):
        return None
    if plan.budget.limit_bytes is not None:
        return plan.budget.limit_bytes
    last = durable.last_jsonl(folder.memory) or {}
    total = last.get("total_bytes")
    return total if isinstance(total, int) else None


def _out_of_memory(plan: Plan, outcome: Outcome) -> bool:
    memory = {Reason.CUDA_OOM, Reason.OVER_BUDGET}
    if plan.launch.device == "cpu":
        memory.add(Reason.HOST_OOM)
    return outcome.reason in memory
