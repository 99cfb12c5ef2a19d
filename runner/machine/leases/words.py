"""GPUs and their holders in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from runner.common.units import format_bytes
from runner.machine.leases.models import Card, CardProcess, Lease


def name_claim(claim: Lease) -> str:
    """demo-identity/2026… (alice, pid 123, budget 12.00 GiB)"""
    budget = (
        "no budget" if claim.budget_bytes is None else f"budget {format_bytes(claim.budget_bytes)}"
    )
    if claim.orphans:
        pids = ", ".join(map(str, claim.orphans))
        who = f"its supervisor is gone; pid {pids} saves and ends within two minutes"
        return f"{claim.run} ({claim.user}, {who})"
    return f"{claim.run} ({claim.user}, pid {claim.pid}, {budget})"


def name_process(process: CardProcess) -> str:
    """pid 4242 python (bob, 30.00 GiB)"""
    command = f" {process.command}" if process.command else ""
    size = "size unknown" if process.used_bytes is None else format_bytes(process.used_bytes)
    who = process.user or ("user not known" if command else "gone, or hidden from here")
    return f"pid {process.pid}{command} ({who}, {size})"


def name_card(card: Card) -> str:
    """GPU 0 (NVIDIA H100)"""
    return f"GPU {card.index} ({card.name})"


def gpus(count: int) -> str:
    """1 GPU, 2 GPUs"""
    return f"{count} GPU" + ("s" if count != 1 else "")


def listed(texts: Sequence[str], most: int | None = None) -> str:
    """All of them, or the first ones and how many more there are."""
    if most is None or len(texts) <= most:
        return "; ".join(texts)
    return "; ".join([*texts[:most], f"and {len(texts) - most} more"])
