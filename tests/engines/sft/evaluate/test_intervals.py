"""Intervals against values known from elsewhere, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from runner.engines.sft.inside.evaluate.intervals import (
    Figure,
    bootstrap,
    mcnemar,
    proportion,
    ratio,
)


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (Wilson's score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_the_published_table(
    right: int, rows: int, low: float, high: float
) -> None:
    figure = proportion(right, rows)
    assert figure.value == right / rows
    assert figure.low == pytest.approx(low, abs=5e-5)
    assert figure.high == pytest.approx(high, abs=5e-5)


def test_no_rows_have_no_share() -> None:
    with pytest.raises(ValueError):
        proportion(0, 0)


def test_the_bootstrap_agrees_with_scipys() -> None:
    generator = np.random.default_rng(5)
    nats, tokens = generator.gamma(2.0, 3.0, 120), generator.integers(1, 9, 120)
    ours = bootstrap([np.stack([nats, tokens], axis=1)], ratio)
    theirs = stats.bootstrap(
        (nats, tokens),
        lambda a, b, axis=-1: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        random_state=generator,
    ).confidence_interval
    assert ours.value == pytest.approx(nats.sum() / tokens.sum())
    assert ours.low is not None and ours.high is not None
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.05 * width
    assert abs(ours.high - theirs.high) < 0.05 * width


def test_the_same_rows_always_have_the_same_interval() -> None:
    rows = [[value, 1] for value in (0, 1, 1, 0, 1, 1, 1)]
    assert bootstrap([rows], ratio) == bootstrap([rows], ratio)
    assert bootstrap([rows], ratio) == bootstrap([rows[::-1]], ratio)


def test_one_row_has_a_value_and_no_interval() -> None:
    assert bootstrap([[[1, 2]]], ratio) == Figure(0.5, None, None)


def test_many_rows_are_drawn_in_chunks() -> None:
    generator = np.random.default_rng(1)
    rows = np.stack([generator.normal(3, 1, 5000), np.ones(5000)], axis=1)  # no two alike
    figure = bootstrap([rows], ratio)
    assert figure.low is not None and figure.high is not None
    expected = 1.96 / np.sqrt(5000)
    assert figure.high - figure.low == pytest.approx(2 * expected, rel=0.1)


def test_several_sets_count_alike_whatever_their_rows() -> None:
    large, small = [[1, 1]] * 90 + [[0, 1]] * 10, [[0, 1]] * 8 + [[1, 1]] * 2
    figure = bootstrap([large, small], ratio)
    assert figure.value == pytest.approx((0.9 + 0.2) / 2)
    assert figure.low is not None and figure.high is not None
    sd = np.sqrt(0.9 * 0.1 / 100 + 0.2 * 0.8 / 10) / 2
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * sd, rel=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        rows = np.stack([generator.exponential(1.0, 80), np.ones(80)], axis=1)
        figure = bootstrap([rows], ratio)
        assert figure.low is not None and figure.high is not None
        hits += figure.low <= 1.0 <= figure.high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (5, 0, 2 * 0.5**5), (6, 6, 1.0), (12, 2, 0.012939)],
)
def test_mcnemar_is_the_sign_test_over_what_one_alone_has_right(
    only_first: int, only_second: int, p: float
) -> None:
    first = [True] * only_first + [False] * only_second + [True, False] * 3
    second = [False] * only_first + [True] * only_second + [True, False] * 3
    assert mcnemar(first, second) == pytest.approx(p, abs=1e-6)
