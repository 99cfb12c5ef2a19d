"""One run's place among those who want GPUs: ask, wait, hold, drop.

Holds an open NVML while it waits. Knows GPUs by UUID.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from runner.common.errors import RefusedError
from runner.common.process_times import boot_id, pid_namespace, start_ticks
from runner.machine.leases.models import Card, Lease
from runner.machine.leases.observe import read_cards
from runner.machine.leases.schedule import Answer, Granted, Queued, collides, decide
from runner.machine.leases.store import Entry, LeaseStore, now_number, user_name
from runner.machine.readings import DeviceSource

TOUCH_SECONDS = 30.0
"""Between two times that the holder of a lease says that it lives."""
_TAKE_TRIES = 5
_TAKE_APART_SECONDS = 0.2  # at most, times the try: two that collide are not to do so again


class Caller(Protocol):
    """What says which GPUs a run may take: runner.plans.facts.allowed_by_caller."""

    def __call__(self, index: int, uuid: str) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """What a run wants."""

    run: str
    folder: str
    count: int
    budget_bytes: int | None
    share: bool
    prefer: tuple[str, ...] = ()
    """UUIDs of the GPUs to take before others."""


@dataclass(frozen=True)
class Look:
    """GPUs and claims at one moment, and what a wish would get."""

    cards: tuple[Card, ...]
    claims: tuple[Lease, ...]
    answer: Answer


def look(
    wish: GpuRequest, nvml: DeviceSource, allows: Caller, book: LeaseStore | None = None
) -> Look:
    """What the wish would get now, behind everybody who waits. Writes nothing.

    Raises NvmlFailed.
    """
    book = book or LeaseStore()
    claims = book.claims()
    cards = read_cards(nvml, claims)
    answer = decide(_claim(wish, cards, allows), claims, cards, wish.prefer)
    return Look(cards, tuple(claims), _with_notes(answer, book))


class LeaseRequest:
    """A place among those who want GPUs, from the question on until it is dropped."""

    def __init__(
        self, wish: GpuRequest, nvml: DeviceSource, allows: Caller, book: LeaseStore | None = None
    ) -> None:
        self._wish, self._nvml, self._allows = wish, nvml, allows
        self._book = book or LeaseStore()
        self._entry: Entry | None = None
        self._changing = threading.Lock()
        self._ends = threading.Event()
        self._keeper: threading.Thread | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, or done otherwise, when it last asked."""
        return self._book.notes

    def ask(self, *, wait: bool) -> Answer:
        """Take the GPUs where they are to be had; else, with `wait`, stand in the queue.

        Asked again it keeps its place. Raises NvmlFailed, and LeasesUnusable for the folder.
        """
        for number in range(_TAKE_TRIES):
            time.sleep(random.random() * _TAKE_APART_SECONDS * number)  # noqa: S311 - no secret
            with self._book.alone() as undisturbed:
                answer = self._ask(wait=wait, tidy=undisturbed)
            if answer is not None:
                return _with_notes(answer, self._book)
        reason = "others were about to take the same GPUs at the same moment"
        return Queued(self._wish.count, (reason,), 1, 1, self._book.notes)

    def keep(self, say: Callable[[str], None]) -> None:
        """From now on show that the holder lives; write the lease anew where somebody removed it.

        Args:
            say: is told of the latter, from a thread of its own.
        """
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, args=(say,), daemon=True)
            self._keeper.start()

    def refresh(self) -> str:
        """Touch the lease, or write it anew; in the second case says so."""
        with self._changing:
            if self._entry is None:
                return ""
            if self._entry.there:
                self._entry.touch()
                return ""
            before = self._entry
            try:
                self._entry = self._book.write(before.claim)
            except RefusedError as error:
                return f"the lease on its GPUs was removed, and can't be written anew: {error}"
            before.drop()
            return "the lease on its GPUs was removed by somebody, and is written anew"

    def drop(self) -> None:
        """Give up the GPUs, or the place."""
        self._ends.set()
        with self._changing:
            if self._entry is not None:
                self._entry.drop()
                self._entry = None

    def _ask(self, *, wait: bool, tidy: bool) -> Answer | None:
        """The answer; None where others took the same GPUs while this one did, and it gave way.

        Whoever writes a lease looks again, and drops it if it sees one beside which it can't be:
        of two that take a GPU at once, the one that writes last sees the other, so that at most
        one keeps it, with the folder's lock or without.
        """
        claims = self._book.claims(tidy=tidy)
        cards = read_cards(self._nvml, claims)
        held = self._entry.claim if self._entry is not None else None
        claim = held or _claim(self._wish, cards, self._allows)
        answer = decide(claim, claims, cards, self._wish.prefer)
        if isinstance(answer, Granted):
            taken = replace(claim, cards=tuple(card.uuid for card in answer.cards))
            entry = self._book.write(taken)
            if not collides(taken, self._book.claims(), cards):
                self._put(entry)
                return answer
            entry.drop()
        if isinstance(answer, Granted | Queued) and wait and not self._stands():
            self._put(self._book.write(claim))
        return None if isinstance(answer, Granted) else answer

    def _stands(self) -> bool:
        return self._entry is not None and self._entry.there

    def _put(self, entry: Entry) -> None:
        with self._changing:
            before, self._entry = self._entry, entry
        if before is not None:
            before.drop()

    def _keep(self, say: Callable[[str], None]) -> None:
        told = ""
        while not self._ends.wait(TOUCH_SECONDS):
            text = self.refresh()
            if text and text != told:
                say(text)
                told = text


def _with_notes(answer: Answer, book: LeaseStore) -> Answer:
    return replace(answer, notes=book.notes) if isinstance(answer, Queued) else answer


def _claim(wish: GpuRequest, cards: Sequence[Card], allows: Caller) -> Lease:
    allowed = tuple(card.uuid for card in cards if allows(card.index, card.uuid))
    return Lease(
        number=now_number(),
        run=wish.run,
        folder=wish.folder,
        uid=os.geteuid(),
        user=user_name(os.geteuid()),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()) or 0,
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
        count=wish.count,
        budget_bytes=wish.budget_bytes,
        share=wish.share,
        allowed=None if len(allowed) == len(cards) else allowed,
        since_unix_seconds=time.time(),
    )
