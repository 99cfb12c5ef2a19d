from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.data.mix import MixShare, mix_shares

counts = st.lists(st.integers(1, 10_000), min_size=2, max_size=4)
ratios = st.lists(st.sampled_from([0.1, 0.5, 1, 2, 3, 7.5]), min_size=4, max_size=4)


@given(counts, ratios, st.sampled_from(["repeat", "cut"]))
def test_the_ratio_is_met_to_a_row(
    rows: list[int], ratios: list[float], fit: Literal["repeat", "cut"]
) -> None:
    ratios = ratios[: len(rows)]
    found = mix_shares(rows, ratios, fit)
    parts = [Fraction(str(ratio)) for ratio in ratios]
    units = [count / part for count, part in zip(rows, parts, strict=True)]
    unit = max(units) if fit == "repeat" else min(units)
    whole = units.index(unit)
    assert found[whole].drawn == rows[whole]
    for portion, part in zip(found, parts, strict=True):
        assert abs(portion.drawn - unit * part) <= Fraction(1, 2)
        assert portion.times * portion.rows + portion.more == portion.drawn
        assert 0 <= portion.more < portion.rows
        if fit == "repeat":
            assert portion.times >= 1
        else:
            assert portion.drawn <= portion.rows


def test_three_to_one() -> None:
    assert mix_shares([760, 91], [3, 1], "repeat") == [MixShare(760, 760), MixShare(91, 253)]
    assert mix_shares([760, 91], [3, 1], "cut") == [MixShare(760, 273), MixShare(91, 91)]
    # the other source may be the larger one for its ratio
    assert mix_shares([100, 91], [3, 1], "repeat") == [MixShare(100, 273), MixShare(91, 91)]
    assert mix_shares([100, 91], [3, 1], "cut") == [MixShare(100, 100), MixShare(91, 33)]


def test_how_often_in_words() -> None:
    assert MixShare(91, 253).words() == "each 2 or 3 times"
    assert MixShare(91, 182).words() == "each 2 times"
    assert MixShare(91, 91).words() == ""
    assert MixShare(760, 273).words() == "drawn from 760"


def test_a_source_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        mix_shares([3, 0], [1, 1], "cut")
