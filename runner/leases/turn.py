"""One run's place among those who want cards: ask, wait, hold, drop.

Holds an open NVML while it waits. Knows cards by UUID.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from runner.guard.records import DeviceSource
from runner.leases.book import Book, Entry, user_name
from runner.leases.decide import Answer, Blocked, Chosen, decide
from runner.leases.look import read_cards
from runner.leases.records import Card, Claim
from runner.liveness import start_ticks


class Caller(Protocol):
    """What says which cards a run may take: runner.facts.named_by_caller."""

    def __call__(self, index: int, uuid: str) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a run wants."""

    run: str
    folder: str
    count: int
    budget_bytes: int | None
    share: bool
    prefer: tuple[str, ...] = ()
    """UUIDs of the cards to take before others."""


@dataclass(frozen=True)
class Look:
    """Cards and claims at one moment, and what a wish would get."""

    cards: tuple[Card, ...]
    claims: tuple[Claim, ...]
    answer: Answer


def look(wish: Wish, nvml: DeviceSource, allows: Caller, book: Book | None = None) -> Look:
    """What the wish would get now, behind everybody who waits. Writes nothing.

    Raises NvmlFailed.
    """
    claims = (book or Book()).claims()
    cards = read_cards(nvml, claims)
    claim = _claim(wish, _next(claims), cards, allows)
    return Look(cards, tuple(claims), decide(claim, claims, cards, wish.prefer))


class Turn:
    """A place among those who want cards, from the question on until it is dropped."""

    def __init__(
        self, wish: Wish, nvml: DeviceSource, allows: Caller, book: Book | None = None
    ) -> None:
        self._wish, self._nvml, self._allows = wish, nvml, allows
        self._book = book or Book()
        self._entry: Entry | None = None

    def ask(self, *, wait: bool) -> Answer:
        """Take the cards where they are to be had; else, with `wait`, stand in the queue.

        Asked again it keeps its place. Raises NvmlFailed, and RefusedError for the folder.
        """
        with self._book.alone():
            claims = self._book.claims(tidy=True)
            cards = read_cards(self._nvml, claims)
            held = self._entry.claim if self._entry is not None else None
            claim = held or _claim(self._wish, _next(claims), cards, self._allows)
            answer = decide(claim, claims, cards, self._wish.prefer)
            if isinstance(answer, Chosen):
                self._write(replace(claim, cards=tuple(card.uuid for card in answer.cards)))
            elif isinstance(answer, Blocked) and wait and not self._stands():
                self._write(claim)
        return answer

    def drop(self) -> None:
        """Give up the cards, or the place."""
        if self._entry is not None:
            self._entry.drop()
            self._entry = None

    def _stands(self) -> bool:
        return self._entry is not None and self._entry.there

    def _write(self, claim: Claim) -> None:
        before = self._entry
        self._entry = self._book.write(claim)
        if before is not None:
            before.drop()


def _next(claims: Sequence[Claim]) -> int:
    return 1 + max((claim.number for claim in claims), default=0)


def _claim(wish: Wish, number: int, cards: Sequence[Card], allows: Caller) -> Claim:
    allowed = tuple(card.uuid for card in cards if allows(card.index, card.uuid))
    return Claim(
        number=number,
        run=wish.run,
        folder=wish.folder,
        user=user_name(os.geteuid()),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()) or 0,
        count=wish.count,
        budget_bytes=wish.budget_bytes,
        share=wish.share,
        allowed=None if len(allowed) == len(cards) else allowed,
        since_unix_seconds=time.time(),
    )
