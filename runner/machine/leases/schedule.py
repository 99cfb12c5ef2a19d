"""Who may take which GPU now. Pure: claims and GPUs in, an answer out.

In the order of arrival: what an earlier claim waits for is not given to a later one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runner.common.units import format_bytes
from runner.machine.leases.models import (
    WHOLE_CARD_FRACTION,
    Card,
    CardProcess,
    Lease,
    foreign,
    foreign_bytes,
)
from runner.machine.leases.words import gpus, listed, name_card, name_claim, name_process

_SIMILAR_BITS = 26
"""GPUs whose use differs by less than 64 MiB are alike."""
_MOST_NAMED = 8


@dataclass(frozen=True)
class Granted:
    """The GPUs are there to be taken."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Queued:
    """Not now, and why: a text for each GPU that it may take."""

    count: int
    reasons: tuple[str, ...]
    place: int
    """Among those who wait for one of these GPUs, from 1."""
    of: int
    notes: tuple[str, ...] = ()
    """What was left out, or done otherwise, in looking."""

    def line(self, most: int | None = 3) -> str:
        """place 2 of 3 for 1 GPU: GPU 0 is held by …"""
        reasons = listed(self.reasons, most)
        shown = "; ".join([reasons, *self.notes])
        return f"place {self.place} of {self.of} for {gpus(self.count)}: {shown}"


@dataclass(frozen=True)
class Unsatisfiable:
    """This machine can't, whoever ends: why, and the way out."""

    why: str
    hint: str


Answer = Granted | Queued | Unsatisfiable


def decide(
    wish: Lease, claims: Iterable[Lease], cards: Sequence[Card], prefer: Sequence[str] = ()
) -> Answer:
    """What `wish` gets. `claims` may hold the wish itself.

    Args:
        prefer: UUIDs of GPUs that are taken before others.
    """
    able = [card for card in cards if wish.may_take(card)]
    if len(able) < wish.count:
        return _never(wish, cards)
    others = [claim for claim in claims if claim.identity != wish.identity]
    waiting = sorted((claim for claim in others if claim.waits), key=lambda claim: claim.identity)
    holders = {card.uuid: [c for c in others if card.uuid in c.cards] for card in cards}
    kept: dict[str, Lease] = {}  # what an earlier one waits for
    for earlier in waiting:
        if earlier.identity > wish.identity:
            break
        picked = _pick(earlier, cards, holders, kept)
        for card in picked:  # it takes these within a second
            holders[card.uuid].append(earlier)
        for card in () if picked else cards:
            if earlier.may_take(card):
                kept.setdefault(card.uuid, earlier)
    if picked := _pick(wish, cards, holders, kept, prefer):
        return Granted(tuple(picked))
    rivals = [claim for claim in waiting if any(map(claim.may_take, able))]
    return Queued(
        count=wish.count,
        reasons=tuple(
            _reason(wish, card, holders[card.uuid], kept.get(card.uuid)) for card in able
        ),
        place=1 + sum(claim.identity < wish.identity for claim in rivals),
        of=1 + len(rivals),
    )


def collides(taken: Lease, claims: Iterable[Lease], cards: Sequence[Card]) -> bool:
    """Whether a claim just written can't be kept beside what others hold of its GPUs by now."""
    others = [c for c in claims if not c.waits and c.identity != taken.identity]
    return any(
        obstacle(taken, card, [other for other in others if card.uuid in other.cards])
        for card in cards
        if card.uuid in taken.cards
    )


def _pick(
    claim: Lease,
    cards: Sequence[Card],
    holders: Mapping[str, list[Lease]],
    kept: Mapping[str, Lease],
    prefer: Sequence[str] = (),
) -> list[Card]:
    """The GPUs that it can have now, as many as it wants, or none."""
    free = [
        card
        for card in cards
        if claim.may_take(card)
        and card.uuid not in kept
        and not obstacle(claim, card, holders[card.uuid])
    ]

    def order(card: Card) -> tuple[bool, int, int]:
        there = holders[card.uuid]
        promised = foreign_bytes(card, there) + sum(each.budget_bytes or 0 for each in there)
        busy = max(promised, card.used_bytes or 0)
        return card.uuid not in prefer, busy >> _SIMILAR_BITS, card.index

    return sorted(free, key=order)[: claim.count] if len(free) >= claim.count else []


def obstacle(claim: Lease, card: Card, holders: Sequence[Lease]) -> str:
    """Why a claim can't have a GPU beside its holders, as words after its name; empty if it can.

    Alone, it needs a GPU without leases and without foreign processes, and its budget (without
    one, nine tenths of the GPU) free. Sharing, it needs holders that share too, its budget free,
    and room for it beside what they were promised and what is foreign.
    """
    needed, free, total = claim.budget_bytes, card.free_bytes, card.total_bytes
    others = foreign(card, holders)
    if not claim.share:
        if needed is None and total is not None:
            needed = int(total * WHOLE_CARD_FRACTION)
        if holders or others:
            return _occupied(holders, others)
    else:
        alone = [each for each in holders if not each.share or each.budget_bytes is None]
        if alone:
            return f"{_occupied(alone, [])}, which does not share"
        if needed is None or card.capacity_bytes is None:
            return "can't be shared without a budget and a size that the driver tells"
        promised = sum(each.budget_bytes or 0 for each in holders)
        left = card.capacity_bytes - foreign_bytes(card, holders) - promised
        if left < needed and (holders or others):
            return (
                f"{_occupied(holders, others)}: {format_bytes(max(0, left))} is left of "
                f"{format_bytes(total)}, and {format_bytes(needed)} is needed"
            )
    if needed is not None and free is not None and free < needed:
        return (
            f"has {format_bytes(free)} free of {format_bytes(total)}, and {format_bytes(needed)} "
            "is needed"
            + ("" if claim.budget_bytes is not None else " without a budget (budget.gpu_memory)")
        )
    return ""


def _occupied(holders: Sequence[Lease], others: Sequence[CardProcess]) -> str:
    parts = [
        ("is held by", [name_claim(each) for each in holders if not each.waits]),
        ("is about to be taken by", [name_claim(each) for each in holders if each.waits]),
        ("is used by", [name_process(each) for each in others]),
    ]
    return " and ".join(f"{verb} {_named(names)}" for verb, names in parts if names)


def _named(names: Sequence[str]) -> str:
    """All of a few; one user can be on a GPU hundreds of times."""
    more = len(names) - _MOST_NAMED
    return ", ".join([*names[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _reason(wish: Lease, card: Card, holders: Sequence[Lease], earlier: Lease | None) -> str:
    """Why a GPU is not among those it gets now."""
    why = obstacle(wish, card, holders)
    if earlier is not None:
        first = f"{name_claim(earlier)} waits for it and came first"
        why = f"{why}; {first}" if why else f"is not given yet: {first}"
    return f"GPU {card.index} {why or 'is free'}"


def _never(wish: Lease, cards: Sequence[Card]) -> Unsatisfiable:
    allowed = [card for card in cards if wish.allowed is None or card.uuid in wish.allowed]
    small = [card for card in allowed if not card.lost and not wish.may_take(card)]
    if small and wish.budget_bytes is not None:
        sizes = listed([f"{name_card(card)} has {_size(card)}" for card in small])
        return Unsatisfiable(
            f"budget.gpu_memory is {format_bytes(wish.budget_bytes)}, but {sizes}",
            "give a budget that the GPU has, with budget.gpu_memory",
        )
    usable = sum(not card.lost for card in allowed)
    return Unsatisfiable(
        f"{gpus(wish.count)} asked for, but there {'is' if usable == 1 else 'are'} {usable} that "
        "can be used here",
        "one training process takes one GPU: give fewer; runner doctor says what is wrong with a "
        "GPU that is lost",
    )


def _size(card: Card) -> str:
    held = (
        f" ({format_bytes(card.reserved_bytes)} of it the driver's)" if card.reserved_bytes else ""
    )
    return f"{format_bytes(card.total_bytes)} in all{held}"
