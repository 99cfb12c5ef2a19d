"""A plan on other GPUs: pure, and its hash stays, since GPUs decide no outcome."""

from __future__ import annotations

from collections.abc import Sequence

from runner.machine.leases.models import Card
from runner.plans.base import Plan


def on_cards(plan: Plan, cards: Sequence[Card], *, share: bool | None = None) -> Plan:
    """The same plan on these GPUs; `share` in place of its own word where it is given.

    The same object where nothing differs. The GPUs' order is NVML's, whichever came first.
    """
    ordered = sorted(cards, key=lambda card: card.index)
    launch = plan.launch.model_copy(
        update={
            "gpu_indices": [card.index for card in ordered],
            "gpu_uuids": [card.uuid for card in ordered],
            "share": plan.launch.share if share is None else share,
        }
    )
    if launch == plan.launch:
        return plan
    return plan.on_gpus(launch)
