"""Whose memory is whose on a GPU: what NVML read, and who its processes are, to the run's bytes.

Pure: imports the standard library, units and this package's `readings`. Who a process is has been
looked up before (`nvml_sampler`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from runner.common.units import MIB
from runner.machine.readings import Attribution, DeviceReading

# Without a process on it a GPU's use still moves a little as the driver comes and goes.
IDLE_SLACK_BYTES = 64 * MIB


class Owner(Enum):
    """Who a process is that NVML lists."""

    MEMBER = auto()
    """A process of the run."""
    LEFT_BEHIND = auto()
    """One of the run that has ended, its memory still on the GPU."""
    CONTAINER = auto()
    """In the run's container."""
    STRANGER = auto()
    """Somebody else's."""
    HIDDEN = auto()
    """Not to be seen here: NVML gives host pids, which mean nothing inside a container."""

    @property
    def is_own(self) -> bool:
        return self in (Owner.MEMBER, Owner.LEFT_BEHIND, Owner.CONTAINER)


@dataclass(frozen=True, slots=True)
class CardHistory:
    """What was seen on a GPU so far."""

    is_shared: bool
    """Somebody else is known, or can't be ruled out, to have used it, before the run or since: its
    total says nothing about the run."""


@dataclass(frozen=True, slots=True)
class Attributed:
    """The run's memory on one GPU, and how that is known."""

    own_bytes: int | None
    """None: not known to be the run's, so nothing may be stopped for it."""
    attribution: Attribution
    history: CardHistory
    """With this reading."""

    @property
    def is_by_process(self) -> bool:
        return self.attribution in (Attribution.NVML_PID, Attribution.CONTAINER_PID)


def start_history(baseline: DeviceReading | None) -> CardHistory:
    """What a GPU's reading before the run says of who was on it."""
    return CardHistory(baseline is None or baseline.processes is None or bool(baseline.processes))


def attribute(
    reading: DeviceReading,
    members: Mapping[int, Owner],
    baseline: DeviceReading | None,
    history: CardHistory,
    *,
    members_known: bool = True,
) -> Attributed:
    """The run's bytes on a GPU, by the strongest attribution that the reading gives.

    By the processes that NVML lists; else the GPU's total less the baseline, only where NVML shows
    the run's processes without their bytes and has never shown another's.

    Args:
        members: who each process is that the reading lists, by pid.
        baseline: the GPU before the run started; None where it could not be read.
        members_known: False where the run's processes could not be listed: a figure by process
            would lack some then.
    """
    owners = [(members[each.pid], each.used_bytes) for each in reading.processes or ()]
    if reading.lost:
        return Attributed(None, Attribution.NONE, history)
    seen = CardHistory(history.is_shared or any(not owner.is_own for owner, _ in owners))
    if members_known and reading.processes is not None:
        found = _by_process(reading, owners, baseline)
        if found is not None:
            return Attributed(*found, seen)
    delta = _delta(reading, baseline, seen)
    how = Attribution.NONE if delta is None else Attribution.DEVICE_DELTA
    return Attributed(delta, how, seen)


def _by_process(
    reading: DeviceReading, owners: list[tuple[Owner, int | None]], baseline: DeviceReading | None
) -> tuple[int, Attribution] | None:
    """The run's bytes by the processes that NVML lists, or None.

    Zero is a figure too, but only where the list is seen to work: NVML gives host pids, and inside
    a container its list is empty, or full of pids that are not there.
    """
    by_container = any(owner is Owner.CONTAINER for owner, _ in owners)
    how = Attribution.CONTAINER_PID if by_container else Attribution.NVML_PID
    own = [used_bytes for owner, used_bytes in owners if owner.is_own]
    if own:
        # a known part of an unknown whole would read as a low figure: unknown, then
        known = [used_bytes for used_bytes in own if used_bytes is not None]
        return (sum(known), how) if len(known) == len(own) else None
    if any(owner is Owner.HIDDEN for owner, _ in owners):
        return None
    if owners:
        return 0, how  # others are on the GPU, the run is not
    if baseline is None or baseline.used_bytes is None or reading.used_bytes is None:
        return None
    idle = reading.used_bytes <= baseline.used_bytes + IDLE_SLACK_BYTES
    return (0, how) if idle else None


def _delta(
    reading: DeviceReading, baseline: DeviceReading | None, history: CardHistory
) -> int | None:
    """The GPU's total less what was there before, only where nobody else is or was on it.

    That needs a list that shows the run's own processes: an empty one, as inside a container,
    shows no neighbours either. (A watchdog on bare totals once killed a healthy neighbour.)
    """
    if history.is_shared or baseline is None or not reading.processes:
        return None
    if reading.used_bytes is None or baseline.used_bytes is None:
        return None
    if reading.memory_api != baseline.memory_api:
        return None  # one counts the driver's share and the other does not
    return max(0, reading.used_bytes - baseline.used_bytes)
