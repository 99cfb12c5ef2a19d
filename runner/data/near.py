"""Held-out rows that are nearly the same as a training row: a report, never a refusal.

Imports the standard library and this package; numpy and datasketch when it is called. By MinHash
(Broder, "On the resemblance and containment of documents", 1997) over the questions' pieces of
PIECE characters, white space and case apart; what LSH gives is then compared piece by piece, so
that each similarity said is the exact Jaccard index of the pieces looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, TypeAlias

from runner.data.compare import comparable
from runner.data.prepared import Prepared, PreparedRow, Split
from runner.data.report_types import NearRecord

if TYPE_CHECKING:
    import datasketch
    import numpy
    from numpy.typing import NDArray

Hashes: TypeAlias = "NDArray[numpy.uint64]"
SIMILARITY = 0.8
"""Jaccard index from which two questions are said to be near duplicates."""
PIECE = 5  # characters
LEAST_PIECES = 10  # a question with fewer of its own says too little to be told by
COMMON = 0.05  # share of the training rows from which a piece is of a template, not of a question
LEAST_COMMON = 20
MOST_HELD_OUT = 10_000
MOST_TRAINED = 30_000
MOST_CHARACTERS = 1_500
PERMUTATIONS = 64
BANDS, BAND_ROWS = 12, 5
"""Two questions of similarity s share a band with probability 1 - (1 - s^5)^12: 0.992 at 0.8."""
NAMED = 10
_BUCKETS = 1 << 21
_PRIME = 1_099_511_628_211  # of FNV-1a's 64-bit hash


def near_duplicates(
    prepared: Prepared, counts: dict[str, int], say: Callable[[str], None]
) -> NearRecord | None:
    """How many held-out rows have a near duplicate in training, and the first of them.

    None where nothing is held out. At most MOST_HELD_OUT and MOST_TRAINED rows are looked at, of
    each MOST_CHARACTERS; the record says how many. Where datasketch is not installed it says that.
    """
    if not counts["train"] or not (counts["eval"] or counts["test"]):
        return None
    started = time.monotonic()
    record: NearRecord = {
        "similarity": SIMILARITY,
        "rule": f"pieces of {PIECE} characters of the last question, white space and case apart",
        "looked_at": None,
    }
    try:
        from datasketch import MinHashLSH
    except ImportError:
        return {**record, "because": "datasketch is not installed"}
    say("looking for near duplicates")
    held = [
        (split, row) for split in _HELD for row in _drawn(prepared, split, counts, MOST_HELD_OUT)
    ]
    trained = _drawn(prepared, "train", counts, MOST_TRAINED)
    common = _common(prepared, counts)
    lsh = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, BAND_ROWS))
    pieces: dict[int, Hashes] = {}
    short = 0
    for place, (_, row) in enumerate(held):
        own = _own_pieces(row, common)
        if len(own) < LEAST_PIECES:
            short += 1
            continue
        pieces[place] = own
        lsh.insert(place, _sketch(own), check_duplication=False)
    best: dict[int, tuple[float, PreparedRow]] = {}
    looked = 0
    for row in trained:
        looked += 1
        own = _own_pieces(row, common)
        if len(own) < LEAST_PIECES:
            continue
        for place in lsh.query(_sketch(own)):
            alike = _jaccard(own, pieces[place])
            if alike >= SIMILARITY and alike > best.get(place, (0.0, row))[0]:
                best[place] = (alike, row)
    return {
        **record,
        "looked_at": {"held_out": len(held), "train": looked},
        "too_short": short,
        "rows": {split: sum(held[place][0] == split for place in best) for split in _HELD},
        "first": [
            {
                "side": held[place][0],
                "source": held[place][1].source,
                "line": held[place][1].line,
                "train_source": best[place][1].source,
                "train_line": best[place][1].line,
                "similarity": round(best[place][0], 3),
            }
            for place in sorted(best)[:NAMED]
        ],
        "seconds": round(time.monotonic() - started, 3),
    }


_HELD: tuple[Split, ...] = ("eval", "test")


def _drawn(
    prepared: Prepared, split: Split, counts: dict[str, int], most: int
) -> Iterator[PreparedRow]:
    """A split's rows, evenly drawn where there are too many; one repeated for a mix comes once."""
    every = max(1, -(-counts[split] // most))
    seen: set[tuple[int, int]] = set()
    for place, row in enumerate(prepared.rows(split)):
        if place % every == 0 and (row.source, row.line) not in seen:
            seen.add((row.source, row.line))
            yield row


def _question(row: PreparedRow) -> str:
    return next(
        (str(turn["content"]) for turn in reversed(row.messages) if turn["role"] == "user"), ""
    )


def _pieces(row: PreparedRow) -> Hashes:
    """The pieces of a row's question, as 64-bit hashes, each once."""
    import numpy

    text = comparable(_question(row), ("white_space", "case"))[:MOST_CHARACTERS]
    codes = numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    if len(codes) < PIECE:
        return numpy.empty(0, dtype="u8")
    windows = codes.astype("u8")
    hashed = numpy.zeros(len(codes) - PIECE + 1, dtype="u8")
    for offset in range(PIECE):
        hashed = (hashed ^ windows[offset : len(codes) - PIECE + 1 + offset]) * numpy.uint64(_PRIME)
        hashed ^= hashed >> numpy.uint64(29)
    return numpy.unique(hashed)


def _common(prepared: Prepared, counts: dict[str, int]) -> NDArray[numpy.bool_]:
    """For each bucket of hashes, whether so many rows have it that it is of a template."""
    import numpy

    seen = numpy.zeros(_BUCKETS, dtype="u4")
    rows = 0
    for row in _drawn(prepared, "train", counts, MOST_TRAINED):
        rows += 1
        seen[_pieces(row) % numpy.uint64(_BUCKETS)] += 1
    return seen >= max(LEAST_COMMON, COMMON * rows)


def _own_pieces(row: PreparedRow, common: NDArray[numpy.bool_]) -> Hashes:
    import numpy

    pieces = _pieces(row)
    return pieces[~common[pieces % numpy.uint64(_BUCKETS)]]


def _sketch(pieces: Hashes) -> datasketch.MinHash:
    import numpy

    sketch = _empty_sketch().copy()
    sketch.update_batch((pieces >> numpy.uint64(32)).tolist())  # datasketch permutes 32-bit hashes
    return sketch


@lru_cache(maxsize=1)
def _empty_sketch() -> datasketch.MinHash:
    """One with the permutations of all, which are drawn once."""
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=index)


def _jaccard(one: Hashes, other: Hashes) -> float:
    import numpy

    shared = len(numpy.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
