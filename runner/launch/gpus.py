"""Choose GPUs before a start, refuse if none is free, and print the line about them.

Looks at the machine and writes nothing; the supervisor decides for good. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from runner.common.errors import UsageError
from runner.common.output import field
from runner.engines.registry import engine_of
from runner.machine.leases.schedule import Granted, Queued, Unsatisfiable
from runner.machine.leases.turn import Look, look
from runner.machine.nvml import Nvml, NvmlFailed, NvmlUnavailable
from runner.plans.base import Plan
from runner.plans.facts import allowed_by_caller
from runner.plans.gpu_requests import refusal, wish_of
from runner.plans.gpus import on_cards
from runner.report.preflight import Preflight, preflight_line


@dataclass(frozen=True)
class _Seen:
    """The machine's GPUs as a plan sees them; `look` is None where NVML can't be asked."""

    look: Look | None
    driver_version: str | None
    failure: str


def gpu_settings(gpus: int | None, sets: list[str]) -> list[str]:
    """What --gpus N comes to, as overrides.

    Raises UsageError where it contradicts a --set.
    """
    if gpus is None:
        return []
    for text in sets:
        name, _, value = text.partition("=")
        if name == "launch.device" and value.strip() == "cpu":
            raise UsageError("--gpus and --set launch.device=cpu exclude each other")
        if name == "launch.num_processes" and value.strip() != str(gpus):
            raise UsageError(f"--gpus {gpus} and --set {text} contradict each other")
    return ["launch.device=cuda", f"launch.num_processes={gpus}"]


def with_free_cards(plan: Plan, *, wait: bool) -> Plan:
    """The plan on GPUs that are free now.

    With `wait` it keeps its own where none are. A CPU run's, and one without NVML, stays as it is.

    Raises:
        RefusedError: who is on each GPU and the ways out, or that no GPU here is large enough.
    """
    if plan.launch.device != "cuda":
        return plan
    seen = _see(plan)
    match seen.look and seen.look.answer:
        case Granted(cards):
            return on_cards(plan, cards)
        case Unsatisfiable() as answer:
            raise refusal(answer)
        case Queued() as answer if not wait:
            raise refusal(answer)
    return plan


def preflight(plan: Plan) -> str:
    """The line before a start, of the machine as it is at this moment."""
    gpu = plan.launch.device == "cuda"
    if not gpu:
        available = psutil.virtual_memory().available
        facts = Preflight(budget=plan.budget, host_available_bytes=available)
        return field(*preflight_line(facts, gpu=False))
    seen = _see(plan)
    cards, claims = (seen.look.cards, seen.look.claims) if seen.look else ((), ())
    answer = seen.look.answer if seen.look else None
    facts = Preflight(
        budget=plan.budget,
        cards=[card for card in cards if card.uuid in plan.launch.gpu_uuids],
        claims=[claim for claim in claims if not claim.waits],
        driver_version=seen.driver_version,
        in_container=plan.container is not None,
        caps_torch=engine_of(plan).caps_memory,
        nvml_failure=seen.failure,
        waits_for=f"waits, {answer.line()}" if isinstance(answer, Queued) else "",
    )
    return field(*preflight_line(facts, gpu=True))


def _see(plan: Plan) -> _Seen:
    try:
        with Nvml() as nvml:
            wish = wish_of(plan, None, share=plan.launch.share)
            return _Seen(
                look(wish, nvml, allowed_by_caller(nvml.devices())), nvml.driver_version(), ""
            )
    except (NvmlUnavailable, NvmlFailed) as error:
        return _Seen(None, None, str(error))
