"""Which rows are held out: how many of each stratum, and which. Pure; standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from math import floor
from typing import TypeVar

Key = TypeVar("Key")

EVAL, TEST = 1, 2


def allot(sizes: Mapping[str, int], eval_share: float, test_share: float) -> dict[str, list[int]]:
    """Rows of each stratum for [eval, test]; what is left over trains.

    Each of the three splits gets its share of a stratum rounded down or up, no further off. Which
    of the two follows from the largest remainders, so that the whole eval split has
    `round(eval_share * rows)` rows, and the test split as near to its own share as that allows. A
    split that rounding leaves without a row, training before all, gets one where one can be spared.

    Raises ValueError unless both shares are at least 0 and together below 1.
    """
    shares = (Fraction(str(eval_share)), Fraction(str(test_share)))
    if min(shares) < 0 or sum(shares) >= 1:
        raise ValueError(f"shares must be at least 0 and below 1 together, not {shares}")
    total = sum(sizes.values())
    names = sorted(sizes)
    parts = {name: [floor(size * share) for share in shares] for name, size in sizes.items()}
    rest = {name: [size * share % 1 for share in shares] for name, size in sizes.items()}

    def largest_first(split: int, among: Iterable[str]) -> list[str]:
        return sorted(among, key=lambda name: (-rest[name][split], name))

    extra = round(total * shares[0]) - sum(part[0] for part in parts.values())
    up = set(largest_first(0, (name for name in names if rest[name][0]))[:extra])
    for name in up:
        parts[name][0] += 1
    wanted = round(total * shares[1])
    free = []
    for name in names:
        # the remainders of eval, test and train add up to 0, 1 or 2 rows: that many are rounded up
        held = sum(rest[name])
        train = -held % 1
        ups = int(held + train) - (name in up)
        candidates = [rest[name][1] > 0, train > 0]
        if ups >= 2 or (ups == 1 and candidates == [True, False]):
            parts[name][1] += 1
        elif ups == 1 and all(candidates):
            free.append(name)
    missing = wanted - sum(part[1] for part in parts.values())
    for name in largest_first(1, free)[: max(0, missing)]:
        parts[name][1] += 1
    _none_empty(parts, sizes, shares)
    return parts


def draw(groups: Iterable[tuple[Key, int]], rooms: list[int]) -> Iterator[tuple[Key, int]]:
    """(key, EVAL or TEST) of the groups held out of one stratum.

    Args:
        groups: each group of rows that have to stay together and its size, in drawn order.
        rooms: rows wanted for [eval, test]; what is left in it at the end found no group that fits.

    Groups are read no further than needed. A larger room for eval holds all of a smaller one.
    """
    if not any(rooms):
        return
    for key, size in groups:
        for index, split in ((0, EVAL), (1, TEST)):
            if size <= rooms[index]:
                rooms[index] -= size
                yield key, split
                break
        if not any(rooms):
            return


def _none_empty(
    parts: dict[str, list[int]], sizes: Mapping[str, int], shares: tuple[Fraction, ...]
) -> None:
    """Give a row to a split that is asked for and has none; before all, one to training."""
    spare = {name: sizes[name] - sum(parts[name]) for name in sorted(parts)}
    if parts and not any(spare.values()):
        name = max(spare, key=lambda name: sizes[name])
        split = TEST - 1 if parts[name][TEST - 1] else EVAL - 1
        parts[name][split] -= 1
        spare[name] += 1
    for split, share in enumerate(shares):
        if share and spare and not any(part[split] for part in parts.values()):
            name = max(spare, key=lambda name: spare[name])
            if spare[name] > 1:
                parts[name][split] += 1
                spare[name] -= 1
