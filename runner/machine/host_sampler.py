"""How much host memory the run's processes use now, by /proc.

May import the standard library, psutil and this package's `readings`. A sampler never raises for
what it could not read: the sample says so, with own_bytes None.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from runner.machine.proc import high_water_bytes
from runner.machine.readings import Attribution, Sample


class HostSampler:
    """The host memory of the run's processes: their proportional set sizes (PSS), added up.

    PSS shares a page among those who map it, so forked workers are not counted twice. The kernel
    walks every page of a process to tell it (14 ms for 3 GiB in small pages, measured), too much
    ten times a second: it is asked once in `exact_seconds`, and in between each process's PSS moves
    with its RSS, which is a counter. Where PSS is not told, RSS stands in for that process and
    `measure` says "rss": too large a figure where memory is shared.
    """

    def __init__(
        self, members: Callable[[], list[psutil.Process]], exact_seconds: float = 1.0
    ) -> None:
        self._members = members
        self._exact_seconds = exact_seconds
        self._known: dict[psutil.Process, _HostReading] = {}

    def sample(self) -> Sample:
        """One sample now."""
        own: int | None = None
        spike = 0
        measure: Literal["pss", "rss"] | None = None
        known: dict[psutil.Process, _HostReading] = {}
        failure = None
        free = total = None
        try:
            members = self._members()
            # a fork halves its parent's share: with a new member nothing known holds any more
            exact = any(process not in self._known for process in members)
            for process in members:
                reading = self._read(process, exact=exact)
                if reading is None:
                    continue  # ended since it was listed
                known[process] = reading
                own = reading.now_bytes if own is None else own + reading.now_bytes
                spike = max(spike, reading.spike_bytes)
                measure = "rss" if "rss" in (measure, reading.measure) else "pss"
            if own is None:
                failure = "no live process of the run"
            memory = psutil.virtual_memory()
            free, total = memory.available, memory.total
        except (psutil.Error, OSError) as error:
            own = measure = None
            spike = 0
            failure = f"host memory can't be read: {error}"
        self._known = known
        return Sample(
            time_unix_seconds=time.time(),
            monotonic_seconds=time.monotonic(),
            kind="host",
            own_bytes=own,
            attribution=Attribution.NONE if own is None else Attribution.HOST_TREE,
            free_bytes=free,
            total_bytes=total,
            devices=(),
            processes=len(known),
            failure=failure,
            measure=measure,
            high_water_bytes=own + spike if own is not None and spike else None,
        )

    def _read(self, process: psutil.Process, *, exact: bool) -> _HostReading | None:
        """One process's memory; None where it has ended (a zombie as well: it holds none)."""
        now = time.monotonic()
        last = self._known.get(process)
        try:
            fresh = last is not None and now - last.exact_at_seconds < self._exact_seconds
            if last is not None and fresh and not exact:
                rss = int(process.memory_info().rss)
                moved = rss - last.rss_bytes
                reading = replace(last, now_bytes=max(0, last.exact_bytes + moved))
            else:
                try:
                    full = process.memory_full_info()
                    pss, rss = int(full.pss), int(full.rss)
                    reading = _HostReading(pss, pss, rss, now, "pss")
                except (psutil.AccessDenied, AttributeError, NotImplementedError):
                    rss = int(process.memory_info().rss)
                    reading = _HostReading(rss, rss, rss, now, "rss")
        except psutil.NoSuchProcess:
            return None
        mark = high_water_bytes(process.pid)
        before = last.mark_bytes if last is not None else None
        rose = mark is not None and mark != before  # or it has executed another program
        spike = max(0, mark - rss) if mark is not None and rose else 0
        return replace(reading, mark_bytes=mark, spike_bytes=spike)


@dataclass(frozen=True, slots=True)
class _HostReading:
    """One process's memory in bytes, and the last reading that was exact."""

    now_bytes: int
    exact_bytes: int
    rss_bytes: int  # at the exact reading
    exact_at_seconds: float  # monotonic
    measure: Literal["pss", "rss"]
    mark_bytes: int | None = None
    """The most RSS that it ever had, by the kernel."""
    spike_bytes: int = 0
    """By how much that mark, if it rose since the reading before, lies above the RSS now."""
