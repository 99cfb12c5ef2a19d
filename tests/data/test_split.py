from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.data.split import EVAL, TEST, allot, draw

sizes = st.dictionaries(st.text(max_size=3), st.integers(1, 300), min_size=1, max_size=12)
shares = st.tuples(st.integers(0, 60), st.integers(0, 39)).map(
    lambda pair: (pair[0] / 100, pair[1] / 100)
)


@given(sizes, shares)
def test_every_side_has_its_share_of_every_stratum_to_a_row(
    sizes: dict[str, int], shares: tuple[float, float]
) -> None:
    parts = allot(sizes, *shares)
    exact = [Fraction(str(share)) for share in shares]
    total = sum(sizes.values())
    assert set(parts) == set(sizes)
    exact.append(1 - sum(exact))
    # with less than a row for a side, one is given to it or not: see below
    plain = all(total * share >= 1 for share in exact if share)
    for name, part in parts.items():
        sides = [*part, sizes[name] - sum(part)]
        assert min(sides) >= 0
        if plain:
            wanted = [sizes[name] * share for share in exact]
            assert all(abs(a - b) < 1 for a, b in zip(sides, wanted, strict=True))
    held, tested = (sum(part[side] for part in parts.values()) for side in (0, 1))
    assert held + tested < total
    if plain:
        assert held == round(total * exact[0])
        assert (held > 0, tested > 0) == (shares[0] > 0, shares[1] > 0)


def test_eight_to_one_to_one() -> None:
    assert allot({"0": 4186, "1": 3688}, 0.1, 0.1) == {"0": [418, 419], "1": [369, 368]}
    assert allot({"a": 10}, 0.1, 0.1) == {"a": [1, 1]}
    assert allot({"a": 3}, 0.1, 0.0) == {"a": [1, 0]}  # a side that is asked for is not empty
    assert allot({"a": 1}, 0.5, 0.4) == {"a": [0, 0]}  # something trains
    assert allot({"a": 2}, 0.9, 0.0) == {"a": [1, 0]}
    assert allot({}, 0.1, 0.1) == {}


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_shares_out_of_range_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        allot({"a": 10}, *shares)


@given(
    st.lists(st.integers(1, 5), max_size=60),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 20),
)
def test_groups_stay_together_and_no_room_is_overfilled(
    sizes: list[int], held: int, tested: int, more: int
) -> None:
    groups = list(enumerate(sizes))
    found = dict(draw(groups, [held, tested]))
    for side, room in ((EVAL, held), (TEST, tested)):
        taken = sum(sizes[key] for key, drawn in found.items() if drawn == side)
        assert taken <= room
        left = [size for key, size in groups if key not in found]
        assert taken == room or all(size > room - taken for size in left)
    if all(size == 1 for size in sizes):
        larger = dict(draw(groups, [held + more, 0]))
        assert {key for key, side in found.items() if side == EVAL} <= set(larger)


def test_no_more_groups_are_read_than_needed() -> None:
    read = []

    def groups():  # type: ignore[no-untyped-def]
        for key in range(100):
            read.append(key)
            yield key, 1

    assert list(draw(groups(), [2, 1])) == [(0, EVAL), (1, EVAL), (2, TEST)]
    assert read == [0, 1, 2]
