"""Byte sizes and durations as people write and read them. Imports only the standard library."""

from __future__ import annotations

import re

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_FACTORS = {
    "B": 1,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 1024**4,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_AGES = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
AGE_EXPECTED = "a number with its unit: 90m, 12h, 30d or 8w"
_SIZE = re.compile(r"\s*([0-9]{1,18})(?:\.([0-9]{1,18}))?\s*([A-Za-z]+)\s*")
SIZE_EXPECTED = "a size with its unit, such as 12GiB, 900MiB or 16GB"


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "12GiB" (binary units) or "16GB" (decimal units).

    Raises ValueError where the text is no size, has no unit, or is not above zero.
    """
    match = _SIZE.fullmatch(text)
    if not match or match[3].upper() not in _FACTORS:
        raise ValueError(f"expected {SIZE_EXPECTED}")
    factor, fraction = _FACTORS[match[3].upper()], match[2] or "0"
    size: int = int(match[1]) * factor + int(fraction) * factor // 10 ** len(fraction)
    if size <= 0:
        raise ValueError(f"expected {SIZE_EXPECTED}, above zero")
    return size


def format_bytes(size: int | None) -> str:
    """A size for people: "5.03 GiB", "412 MiB"; "unknown" for None."""
    if size is None:
        return "unknown"
    if abs(size) >= GIB:
        return f"{size / GIB:.2f} GiB"
    if abs(size) >= MIB:
        return f"{size / MIB:.0f} MiB"
    return f"{size / KIB:.0f} KiB"


def format_duration(seconds: float) -> str:
    """A duration for people: "0:41", "12:05", "1:02:03"."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def parse_age(text: str) -> float:
    """Seconds of an age such as "30d" (minutes m, hours h, days d, weeks w).

    Raises ValueError where the text is none.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*([mhdw])\s*", text)
    if not match:
        raise ValueError(f"expected {AGE_EXPECTED}")
    return float(match[1]) * _AGES[match[2]]


def format_age(seconds: float) -> str:
    """An age for people, in one unit: "12 m", "5 h", "31 d"."""
    for unit in ("d", "h"):
        if seconds >= 2 * _AGES[unit]:
            return f"{seconds / _AGES[unit]:.0f} {unit}"
    return f"{seconds / _AGES['m']:.0f} m"
