"""What is known of GPUs and of those who want them. Pure records; standard library only.

Bytes are int, and None means unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runner.common.units import GIB

DESKTOP_BYTES = GIB
"""Up to so much in all, what a desktop draws with does not make a GPU another's."""
WHOLE_CARD_FRACTION = 0.9
"""Of a GPU's memory, which has to be free for a run without a budget."""

Identity = tuple[int, int, int]
"""Number, uid and pid of a claim. A number alone names nobody: anybody can write the same one."""


@dataclass(frozen=True)
class CardProcess:
    """A process that NVML lists on a GPU."""

    pid: int
    used_bytes: int | None
    user: str | None = None
    command: str | None = None
    desktop: bool = False
    """A display server or the like, by its name."""
    claim: Identity | None = None
    """Of the claim whose run it belongs to; None where it is foreign."""


@dataclass(frozen=True)
class Card:
    """A GPU at one moment."""

    index: int
    uuid: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    reserved_bytes: int | None = None
    """Held by the driver, where it tells."""
    processes: tuple[CardProcess, ...] | None = ()
    """None: the list can't be read."""
    lost: bool = False

    @property
    def capacity_bytes(self) -> int | None:
        """What all processes together can have."""
        return None if self.total_bytes is None else self.total_bytes - (self.reserved_bytes or 0)

    @property
    def used_bytes(self) -> int | None:
        """Not free, the driver's own share left out."""
        if self.capacity_bytes is None or self.free_bytes is None:
            return None
        return max(0, self.capacity_bytes - self.free_bytes)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What a run has of the GPUs (a lease), or waits for (a place in the queue)."""

    number: int
    """The order of arrival: nanoseconds since the machine started (of earlier runners: 1, 2, …)."""
    run: str
    folder: str
    uid: int
    """Of the file's owner, by the kernel."""
    user: str
    pid: int
    """Of the supervisor, in its own pid namespace."""
    start_ticks: int
    boot_id: str | None = None
    """Of the start of the machine in which it was written; None of earlier runners."""
    pid_namespace: str | None = None
    """In which `pid` means something; None of earlier runners, which is taken for ours."""
    count: int
    """How many GPUs it wants."""
    budget_bytes: int | None
    """On each GPU."""
    share: bool
    allowed: tuple[str, ...] | None = None
    """UUIDs of the GPUs that its caller lets it take; None for any."""
    cards: tuple[str, ...] = ()
    """UUIDs of the GPUs that it holds; none while it waits."""
    orphans: tuple[int, ...] = ()
    """pids that still train after the supervisor's death: what keeps this claim alive."""
    since_unix_seconds: float = 0.0

    @property
    def identity(self) -> Identity:
        """By which it is told from all others, and sorted: who came first is first."""
        return self.number, self.uid, self.pid

    @property
    def waits(self) -> bool:
        return not self.cards

    def may_take(self, card: Card) -> bool:
        """Whether it could have this GPU if nobody else were there."""
        if card.lost or (self.allowed is not None and card.uuid not in self.allowed):
            return False
        capacity = card.capacity_bytes
        return self.budget_bytes is None or capacity is None or self.budget_bytes <= capacity


def foreign(card: Card, holders: Iterable[Lease]) -> list[CardProcess]:
    """The processes on a GPU that are of none of its holders, desktops left out."""
    known = {claim.identity for claim in holders}
    others = [each for each in card.processes or () if each.claim not in known]
    drawing = [each for each in others if each.desktop]
    if sum(each.used_bytes or 0 for each in drawing) < DESKTOP_BYTES:
        others = [each for each in others if not each.desktop]
    return others


def foreign_bytes(card: Card, holders: Iterable[Lease]) -> int:
    """What is in use on a GPU and not known to be its holders'; what can't be told is counted."""
    known = {claim.identity for claim in holders}
    listed = card.processes or ()
    others = sum(each.used_bytes or 0 for each in listed if each.claim not in known)
    if card.used_bytes is None:
        return others
    own = sum(each.used_bytes or 0 for each in listed if each.claim in known)
    return max(others, card.used_bytes - own)
