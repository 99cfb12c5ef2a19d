"""Sizes and durations: read exactly, refused with what was expected, shown short."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.units import GIB, KIB, MIB, format_bytes, format_duration, parse_bytes

UNITS = {
    "B": 1,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1024**4,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


@given(
    whole=st.integers(0, 10**12),
    fraction=st.none() | st.text("0123456789", min_size=1, max_size=9),
    unit=st.sampled_from(sorted(UNITS)),
    space=st.sampled_from(["", " ", "  "]),
    case=st.sampled_from([str, str.lower, str.upper]),
)
def test_a_size_is_read_exactly(
    whole: int, fraction: str | None, unit: str, space: str, case: type[str]
) -> None:
    number = str(whole) + ("" if fraction is None else f".{fraction}")
    exact = int(Fraction(number) * UNITS[unit])
    text = f"{space}{number}{space}{case(unit)}{space}"
    if exact:
        assert parse_bytes(text) == exact
    else:
        with pytest.raises(ValueError, match="above zero"):
            parse_bytes(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "12", "GiB", "-1GiB", "+1GiB", "1e3MiB", "1.GiB", ".5GiB", "1,5GiB", "0x1GiB"),
        *("12G", "12Gi", "12GiBs", "12 Gi B", "1_000MiB", "٣GiB", "9" * 400 + "GiB", "nanGiB"),
    ],
)
def test_what_is_no_size_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size with its unit, such as 12GiB"):
        parse_bytes(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_above_zero_or_is_refused(text: str) -> None:
    try:
        assert parse_bytes(text) > 0
    except ValueError as error:
        assert str(error).startswith("expected a size with its unit")


@given(st.integers(0, 10**15))
def test_a_shown_size_is_near_the_size(size: int) -> None:
    number, unit = format_bytes(size).split()
    step = {"GiB": GIB / 100, "MiB": MIB, "KiB": KIB}[unit]
    assert abs(float(number) * UNITS[unit] - size) <= step / 2 + 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (None, "unknown"),
        (0, "0 KiB"),
        (412 * MIB, "412 MiB"),
        (5 * GIB + 31 * MIB, "5.03 GiB"),
        (-2 * GIB, "-2.00 GiB"),
    ],
)
def test_sizes_are_shown_for_people(size: int | None, shown: str) -> None:
    assert format_bytes(size) == shown


@given(st.integers(0, 10**7))
def test_a_shown_duration_adds_up(seconds: int) -> None:
    parts = [int(part) for part in format_duration(seconds).split(":")]
    assert sum(part * 60**place for place, part in enumerate(reversed(parts))) == seconds
    assert all(part < 60 for part in parts[1:])


def test_durations_are_shown_for_people() -> None:
    shown = [format_duration(seconds) for seconds in (0, 41, 59.6, 725, 3723)]
    assert shown == ["0:00", "0:41", "1:00", "12:05", "1:02:03"]
