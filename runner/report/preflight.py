"""One line before a start: the memory that is there, the budget, who else is there, what guards it.

Pure: facts in, text out. Imports the records of GPUs and plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.common.units import GIB, format_bytes
from runner.machine.leases.models import Card, Lease
from runner.machine.leases.words import name_claim, name_process
from runner.plans.base import PlannedBudget

LIMITING_DRIVER = 615
"""The first driver that caps a container's GPU memory (docs/memory-budget.md)."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is known a moment before the start."""

    budget: PlannedBudget
    cards: Sequence[Card] = ()
    """The run's, of a GPU run."""
    claims: Sequence[Lease] = ()
    """Leases of others."""
    driver_version: str | None = None
    in_container: bool = False
    caps_torch: bool = False
    """Whether its engine caps torch's allocator at the budget: only runner's own does."""
    nvml_failure: str = ""
    """Why NVML can't be asked, in a GPU run."""
    waits_for: str = ""
    """Its place in the queue, where it does not get its GPUs at once."""
    host_available_bytes: int | None = None


def preflight_line(facts: Preflight, *, gpu: bool) -> tuple[str, str]:
    """Label and text, of a GPU run or a CPU run."""
    limit = facts.budget.limit_bytes
    budget = "no budget" if limit is None else f"budget {format_bytes(limit)}"
    if not gpu:
        guard = "memory is recorded only" if limit is None else "watchdog on the process tree"
        free = f"host memory {format_bytes(facts.host_available_bytes)} available"
        return "host", " · ".join([free, budget, guard])
    if facts.nvml_failure:
        left = "only torch's cap guards it" if facts.caps_torch else "nothing guards it"
        return "gpu", f"NVML can't be used: {facts.nvml_failure} · {budget} · {left}"
    where = facts.waits_for or "; ".join(_card(card, facts.claims) for card in facts.cards)
    each = " on each" if limit is not None and len(facts.cards) > 1 else ""
    return "gpu", " · ".join([where, budget + each, enforcement(facts)])


def enforcement(facts: Preflight) -> str:
    """What holds a GPU run to its budget here, strongest first, and why nothing stronger does."""
    if facts.budget.limit_bytes is None:
        return "memory is recorded only"
    guards = [*(["torch's cap"] if facts.caps_torch else []), "NVML watchdog"]
    major = (facts.driver_version or "").partition(".")[0]
    if not major.isdigit():
        missing = "no driver limit: its version is unknown"
    elif int(major) < LIMITING_DRIVER:
        missing = f"no driver limit: driver {major} < {LIMITING_DRIVER}"
    elif not facts.in_container:
        missing = "no driver limit: not in a container"
    else:
        missing = "the driver's own limit is asked for, and counts once it is read back"
    return f"{' + '.join(guards)} ({missing})"


def _card(card: Card, claims: Sequence[Lease]) -> str:
    """GPU 1 (NVIDIA H100, idle) · 78.90 GiB free of 79.6"""
    beside = [name_claim(claim) for claim in claims if card.uuid in claim.cards]
    known = {claim.identity for claim in claims}
    beside += [
        name_process(each) + (", a desktop's" if each.desktop else "")
        for each in card.processes or ()
        if each.claim not in known
    ]
    there = f"beside {', '.join(beside)}" if beside else "idle"
    if card.processes is None and not beside:
        there = "its processes can't be listed"
    total = "unknown" if card.total_bytes is None else f"{card.total_bytes / GIB:.1f}"
    return (
        f"GPU {card.index} ({card.name}, {there}) · {format_bytes(card.free_bytes)} free of {total}"
    )
