"""Acquire, wait for and release the GPUs of a run.

The supervisor decides for good: the plan's GPUs were chosen when it was made, and another run may
have taken them since.
"""

from __future__ import annotations

import contextlib
import re
import time
from types import TracebackType
from typing import Self

from runner.common.errors import EXIT_INTERRUPTED, RefusedError
from runner.common.units import format_duration
from runner.engines.render import render
from runner.machine.leases.models import Card
from runner.machine.leases.schedule import Granted, Queued, Unsatisfiable
from runner.machine.leases.store import LeasesUnusable
from runner.machine.leases.turn import LeaseRequest
from runner.machine.nvml import Nvml, NvmlFailed, NvmlUnavailable
from runner.plans.base import Plan
from runner.plans.facts import allowed_by_caller
from runner.plans.gpu_requests import refusal, wish_of
from runner.plans.gpus import on_cards
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from runner.supervisor.event_log import EventLog
from runner.supervisor.stop_signals import Stop

POLL_SECONDS = 1.0
_STOP_SECONDS = 0.05
_SIZES_SECONDS = 10.0  # between two looks at sizes alone, which change all the time
_SIZE = re.compile(r"\d+(?:\.\d+)? [KMG]iB")
_OFTEN_SAID, _SELDOM_SECONDS = 200, 60.0  # others could have each look say something else for weeks
_STUCK_SECONDS = 60.0  # that NVML or the folder of leases may fail to answer one who waits


class GpuLease:
    """A run's place among all that want cards. A context manager: left, it has none any more.

    ask, then await_turn, then settle; asked again (another start of the same run) it keeps what it
    has.
    """

    def __init__(self, folder: RunFolder, *, wait: bool, share: bool = False) -> None:
        """`share`: whatever the plan in the folder says, which a resume does not write anew."""
        self._folder, self._wait, self._share = folder, wait, share
        self._turn: LeaseRequest | None = None
        self._nvml = contextlib.ExitStack()
        self._cards: tuple[Card, ...] | None = None
        self._blocked: Queued | None = None
        self._without = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._turn is not None:
            self._turn.drop()
            self._folder.remove(self._folder.queue, as_far_as_possible=True)
        self._nvml.close()

    def ask(self, plan: Plan) -> None:
        """Take the GPUs, or stand in the queue where that is allowed. Writes nothing to the run.

        Raises RefusedError where it can't have them.
        """
        if plan.launch.device != "cuda" or self._turn is not None:
            return
        try:
            nvml = self._nvml.enter_context(Nvml())
            wish = wish_of(plan, self._folder, share=self._share or plan.launch.share)
            turn = LeaseRequest(wish, nvml, allowed_by_caller(nvml.devices()))
            answer = turn.ask(wait=self._wait)
        except (NvmlUnavailable, NvmlFailed) as error:
            self._nvml.close()
            self._without = str(error)
            return
        self._turn = turn
        match answer:
            case Granted(cards):
                self._cards = cards
            case Queued() if self._wait:
                self._blocked = answer
            case Queued() | Unsatisfiable():
                raise refusal(answer)

    def await_turn(self, stop: Stop, record: EventLog) -> Outcome | None:
        """Wait for the GPUs; None once they are there, else the outcome on a run that never began.

        The place stands in queue.json and, as it changes, in events.jsonl. Time spent here is not
        the run's.
        """
        if self._blocked is None or self._turn is None:
            if self._without:
                record.event(
                    "notice",
                    f"NVML can't be used ({self._without}): whether others have the GPU is not "
                    "known, and no lease was taken",
                )
            return None
        began, asked, failing = time.time(), time.monotonic(), 0.0
        shown, shown_at, trouble = "", 0.0, ""
        said, said_at = 0, 0.0
        while self._blocked is not None:
            text, now = trouble or self._blocked.line(), time.monotonic()
            if _SIZE.sub("", text) != _SIZE.sub("", shown):
                if said < _OFTEN_SAID or now - said_at >= _SELDOM_SECONDS:
                    record.event("notice" if trouble else "queued", text)
                    said, said_at = said + 1, now
                self._show(self._blocked, text, began)
                shown, shown_at = text, now
            elif text != shown and now - shown_at >= _SIZES_SECONDS:
                self._show(self._blocked, text, began)
                shown, shown_at = text, now
            end = time.monotonic() + POLL_SECONDS
            while time.monotonic() < end:
                if stop.level:
                    return _stopped(stop, asked)
                time.sleep(_STOP_SECONDS)
            try:
                answer = self._turn.ask(wait=True)
                failing, trouble = 0.0, ""
            except (NvmlFailed, LeasesUnusable) as error:
                if isinstance(error, LeasesUnusable) and not error.own:
                    # nothing that another user does there ends a run
                    why = f"{error.message}; {error.hint}"
                    trouble = f"waits on, though it can't ask for a GPU now: {why}"
                    continue
                failing = failing or time.monotonic()
                if time.monotonic() - failing > _STUCK_SECONDS:
                    return _failed(f"it could not wait any longer: {error}", asked)
                continue
            match answer:
                case Granted(cards):
                    self._cards, self._blocked = cards, None
                case Queued():
                    self._blocked = answer
                case Unsatisfiable(why, hint):
                    return _failed(f"{why}; {hint}", asked)
        self._folder.remove(self._folder.queue)
        names = ", ".join(f"GPU {card.index}" for card in self._cards or ())
        waited = time.monotonic() - asked
        text = f"waited {format_duration(waited)} for {names}"
        record.event("notice", text, waited_seconds=round(waited, 3))
        return None

    def settle(self, plan: Plan, record: EventLog) -> Plan:
        """The plan on the GPUs that it got, its files rendered anew where they differ."""
        if self._cards is None or self._turn is None:
            return plan
        for note in self._turn.notes:
            record.event("notice", note)
        self._turn.keep(lambda text: record.event("notice", text))
        changed = on_cards(plan, self._cards, share=self._share or plan.launch.share)
        if changed is plan:
            return plan
        self._folder.write_rendered(render(changed))
        if changed.launch.gpu_uuids != plan.launch.gpu_uuids:
            was, now = (
                ", ".join(f"GPU {index} ({uuid})" for index, uuid in zip(i, u, strict=True))
                for i, u in (
                    (plan.launch.gpu_indices, plan.launch.gpu_uuids),
                    (changed.launch.gpu_indices, changed.launch.gpu_uuids),
                )
            )
            record.event("notice", f"runs on {now}, planned was {was}; the plan says so now")
        return changed

    def _show(self, blocked: Queued, text: str, began: float) -> None:
        with contextlib.suppress(OSError):  # a full disk hides the place, and takes it from nobody
            self._folder.write_json(
                self._folder.queue,
                {
                    "schema_version": 1,
                    "place": blocked.place,
                    "of": blocked.of,
                    "count": blocked.count,
                    "text": text,
                    "since_unix_seconds": round(began, 3),
                },
            )


def _stopped(stop: Stop, asked: float) -> Outcome:
    code = EXIT_INTERRUPTED if stop.interrupted else 143
    return _never_began(Reason.STOPPED, code, "stopped on request while it waited", asked)


def _failed(why: str, asked: float) -> Outcome:
    return _never_began(Reason.FAILED, RefusedError.exit_code, why, asked)


def _never_began(reason: Reason, code: int, why: str, asked: float) -> Outcome:
    """`asked`: when it began to wait, by time.monotonic()."""
    waited, now = time.monotonic() - asked, time.time()
    return Outcome(
        reason,
        code,
        f"{why}; nothing was started",
        started_unix_seconds=round(now - waited, 3),
        ended_unix_seconds=round(now, 3),
        elapsed_seconds=waited,
    )
