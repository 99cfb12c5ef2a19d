"""What an allocator holds for a sequence of allocations, fragmentation included: torch's on a GPU,
libc's on a CPU. Pure.

torch counts a tensor's bytes as allocated; what the process holds of the GPU is what the allocator
has mapped for them, which NVML shows. This follows CUDACachingAllocator with expandable segments,
as launch.sh sets them (torch 2.13, c10/cuda/CUDACachingAllocator.cpp): sizes are rounded up to 512
bytes; up to 1 MiB they come from a pool that grows by 2 MiB, larger ones from a pool that grows by
20 MiB; the smallest free block that fits is taken and split; freed neighbours join; where no block
fits, the segment grows at its end. Nothing is unmapped before memory runs out.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

ROUNDING_BYTES = 512
SMALL_BYTES = 1 << 20
SMALL_GROWTH_BYTES = 2 << 20
LARGE_GROWTH_BYTES = 20 << 20

Event = tuple[int, int]
"""(name, bytes): an allocation of so many bytes; bytes 0 frees what the name stands for."""


def rounded(size: int) -> int:
    """Bytes that a block for `size` bytes takes; nothing takes nothing."""
    return -(-size // ROUNDING_BYTES) * ROUNDING_BYTES


def reserved_peak(events: Iterable[Event]) -> int:
    """Bytes mapped when a sequence of allocations is over; they never become fewer on the way."""
    small, large = _Segment(SMALL_GROWTH_BYTES), _Segment(LARGE_GROWTH_BYTES)
    owner: dict[int, _Segment] = {}
    for name, size in events:
        if size:
            segment = small if size <= SMALL_BYTES else large
            owner[name] = segment
            segment.allocate(name, rounded(size))
        elif name in owner:
            owner.pop(name).free(name)
    return small.mapped + large.mapped


LIBC_MAPPED_BYTES = 32 << 20
"""glibc maps blocks from here on by themselves, and gives them back as they are freed
(DEFAULT_MMAP_THRESHOLD_MAX of malloc/malloc.c; a program that frees large blocks gets there)."""
LIBC_GROWTH_BYTES = 128 << 10
LIBC_SHARE = 1.25
"""Size of the heap for what comes and goes in a step, of its best case: small objects that live on
between the tensors keep freed neighbours from joining, and the heap from shrinking. Measured: 1.0
to 1.5 (benchmarks/host_memory.py, the configurations that are not marked as held out)."""


@dataclass(frozen=True)
class Libc:
    """Bytes that libc holds for a training step's tensors on a CPU, weights apart."""

    heap_bytes: int
    """For blocks below LIBC_MAPPED_BYTES, once the first step is over; it never becomes less."""
    mapped_bytes: int
    """For larger ones, at the most."""

    @property
    def peak_bytes(self) -> int:
        return self.heap_bytes + self.mapped_bytes


def libc_holds(before: Iterable[Event], step: Iterable[Event]) -> Libc:
    """What libc holds for what stays from step to step, and for a step's allocations after it.

    Its heap grows to the most that the smaller blocks ever took and stays so, also while the larger
    ones, mapped by themselves, come to their peak.
    """
    heap, mapped, most, stays = _Segment(LIBC_GROWTH_BYTES), 0, 0, 0
    large: dict[int, int] = {}
    small: set[int] = set()
    for events in (before, step):
        stays = heap.mapped
        for name, size in events:
            if size >= LIBC_MAPPED_BYTES:
                large[name] = size
                mapped += size
                most = max(most, mapped)
            elif size:
                small.add(name)
                heap.allocate(name, rounded(size))
            elif name in large:
                mapped -= large.pop(name)
            elif name in small:
                small.remove(name)
                heap.free(name)
    return Libc(stays + int(LIBC_SHARE * (heap.mapped - stays)), most)


class _Segment:
    """One expandable segment: addresses from 0 to `end`, of which `mapped` bytes are there."""

    def __init__(self, growth: int) -> None:
        self._growth = growth
        self.mapped = 0
        self._used: dict[int, tuple[int, int]] = {}  # name -> address, size
        self._starts: dict[int, int] = {}  # free block: address -> size
        self._ends: dict[int, int] = {}  # free block: address behind it -> address
        self._by_size: list[tuple[int, int]] = []  # (size, address), sorted

    def allocate(self, name: int, size: int) -> None:
        at = bisect.bisect_left(self._by_size, (size, -1))
        if at == len(self._by_size):
            self._grow(size)
            at = bisect.bisect_left(self._by_size, (size, -1))
        found, address = self._by_size[at]
        self._forget(address, found)
        if found > size:
            self._remember(address + size, found - size)
        self._used[name] = (address, size)

    def free(self, name: int) -> None:
        address, size = self._used.pop(name)
        self._join(address, size)

    def _grow(self, size: int) -> None:
        """Map more at the end, so that a block of `size` bytes is free there."""
        last = self._ends.get(self.mapped)
        there = 0 if last is None else self._starts[last]
        more = -(-(size - there) // self._growth) * self._growth
        address, self.mapped = self.mapped, self.mapped + more
        self._join(address, more)

    def _join(self, address: int, size: int) -> None:
        before = self._ends.get(address)
        if before is not None:
            length = self._starts[before]
            self._forget(before, length)
            address, size = before, size + length
        behind = self._starts.get(address + size)
        if behind is not None:
            self._forget(address + size, behind)
            size += behind
        self._remember(address, size)

    def _remember(self, address: int, size: int) -> None:
        self._starts[address] = size
        self._ends[address + size] = address
        bisect.insort(self._by_size, (size, address))

    def _forget(self, address: int, size: int) -> None:
        del self._starts[address]
        del self._ends[address + size]
        self._by_size.pop(bisect.bisect_left(self._by_size, (size, address)))
