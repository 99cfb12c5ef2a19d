"""95 % intervals of measured figures, and whether two models differ. Pure; imports numpy, scipy.

Shares of rows have Wilson's interval. What is no share (macro F1, loss, a difference of two models
on the same rows) has a percentile bootstrap over the rows (B. Efron, 1979): 4,000 resamples with a
fixed seed, so that the same answers always give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 4000
SEED = 20_240_607
_CELLS_AT_ONCE = 4_000_000  # counts drawn and held at once: 32 MB

Floats = NDArray[np.float64]
OfSums = Callable[[Floats], Floats]
"""A figure as a function of sums over rows: (resamples, features) -> (resamples,)."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval; None where too few rows give one."""

    value: float
    low: float | None
    high: float | None


def proportion(successes: int, rows: int) -> Figure:
    """`successes` of `rows` with Wilson's score interval (E. B. Wilson, JASA 22, 1927).

    Unlike the textbook interval it stays within 0 to 1 and has a width at 0 and at 1. Raises
    ValueError for no rows.
    """
    from scipy import stats

    test = stats.binomtest(successes, rows)
    interval = test.proportion_ci(confidence_level=LEVEL, method="wilson")
    return Figure(successes / rows, float(interval.low), float(interval.high))


def mean_proportion(counts: Sequence[tuple[int, int]]) -> Figure:
    """The unweighted mean of several sets' shares, from each set's (successes, rows).

    Wilson's limits of each share are combined as if they were standard errors (MOVER: R. G.
    Newcombe, Statistics in Medicine 17, 1998; Zou and Donner, 2008). A bootstrap would have no
    width where every set is all right or all wrong.
    """
    shares = [proportion(successes, rows) for successes, rows in counts]
    value = float(np.mean([share.value for share in shares]))
    below = sum((share.value - (share.low or 0.0)) ** 2 for share in shares)
    above = sum(((share.high or 0.0) - share.value) ** 2 for share in shares)
    size = len(shares)
    return Figure(value, value - below**0.5 / size, value + above**0.5 / size)


def bootstrap(sets: Sequence[ArrayLike], figure: OfSums) -> Figure:
    """A figure of sums over rows; for several sets, its unweighted mean, each drawn on its own.

    Args:
        sets: for each set of rows an array (rows, features) of what is summed over its rows.
        figure: gives the value for each of many vectors of sums.

    There is no interval for fewer than two rows, nor where every resample has the same value (all
    rows alike): a bootstrap can't tell how sure that is. Rows alike are drawn together, as one
    multinomial count: the same distribution as drawing row by row, at a fraction of the work where
    there are few kinds of rows.
    """
    features = [np.asarray(rows, dtype=float) for rows in sets]
    values = [float(figure(rows.sum(axis=0, keepdims=True))[0]) for rows in features]
    value = float(np.mean(values))
    if any(len(rows) < 2 for rows in features):
        return Figure(value, None, None)
    generator = np.random.default_rng(SEED)
    resampled = np.mean([_resampled(rows, figure, generator) for rows in features], axis=0)
    if not np.isfinite(resampled).all() or np.ptp(resampled) == 0:
        return Figure(value, None, None)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Figure(value, float(low), float(high))


def ratio(sums: Floats) -> Floats:
    """The first sum by the second: loss over tokens, right answers over rows."""
    out: Floats = sums[:, 0] / sums[:, 1]
    return out


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p that two models are right equally often, from their answers to each row.

    A sign test over the rows that just one of them has right (Q. McNemar, Psychometrika 12, 1947).
    """
    only_first = sum(one and not two for one, two in zip(first, second, strict=True))
    only_second = sum(two and not one for one, two in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def _resampled(rows: Floats, figure: OfSums, generator: np.random.Generator) -> Floats:
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    chunk = max(1, _CELLS_AT_ONCE // len(kinds))
    out = []
    for start in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - start)
        drawn = generator.multinomial(len(rows), counts / len(rows), size=size)
        out.append(figure(drawn @ kinds))
    return np.concatenate(out)
