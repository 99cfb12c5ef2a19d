"""Bars, sparklines and figures of `runner monitor`, as rich Text of a given width. Pure.

May import the stdlib, runner.common.units and, inside functions, rich. All can be read without
colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.common.units import GIB, KIB, MIB, format_bytes

if TYPE_CHECKING:
    from rich.text import Text

# The guard's own thresholds: it warns at the first and asks for a checkpoint at the second.
WARN_FRACTION = 0.85
ALERT_FRACTION = 0.95
_LEVELS = "▁▂▃▄▅▆▇█"
_FILLED, _HALF, _FREE, _MARK = "━", "╸", "─", "┃"


def style_of(fraction: float | None) -> str:
    """Green, from 85 % yellow, from 95 % red; what is unknown has no colour."""
    if fraction is None:
        return "dim"
    if fraction < WARN_FRACTION:
        return "green"
    return "yellow" if fraction < ALERT_FRACTION else "bold red"


def bar(
    width: int, fraction: float | None, style: str, marks: Sequence[float] = (), free: str = _FREE
) -> Text:
    """A bar of `width` cells filled to `fraction` (0 to 1), with a mark at each of `marks`.

    What is above 1 fills the bar; None is no bar but says so.
    """
    from rich.text import Text

    if fraction is None:
        return Text("unknown"[:width].ljust(width), style="dim")
    halves = min(2 * width, max(0, round(2 * width * fraction)))
    if halves == 0 and fraction > 0:
        halves = 1  # a little is not nothing
    whole, half = divmod(halves, 2)
    text = Text.assemble(
        (_FILLED * whole + _HALF * half, style), (free * (width - whole - half), "dim")
    )
    for mark in marks:
        if 0 < mark < 1:
            at = min(width - 1, int(mark * width))
            text = Text.assemble(text[:at], (_MARK, "bold"), text[at + 1 :])
    return text


def sparkline(values: Sequence[int | None], top: int | None) -> Text:
    """A column for each value, its height and colour by the share of `top`; blank where unknown.

    Where `top` is None the largest value is the top, and there is no colour.
    """
    from rich.text import Text

    known = [value for value in values if value is not None]
    scale = top or max(known, default=0)
    text = Text()
    for value in values:
        if value is None or not scale:
            text.append(" ")
            continue
        share = value / scale
        level = min(len(_LEVELS) - 1, max(0, math.ceil(share * len(_LEVELS)) - 1))
        text.append(_LEVELS[level], style=style_of(share) if top else "")
    return text


def pair(used: int | None, total: int | None) -> str:
    """ "19.53 / 79.65 GiB", both in the larger one's unit; "?" where unknown."""
    if total is None:
        return f"{'?' if used is None else format_bytes(used)} / ?"
    unit, name = _unit(max(total, used or 0))
    shown = "?" if used is None else _figure(used / unit, name)
    return f"{shown} / {_figure(total / unit, name)} {name}"


def in_unit_of(value: int | None, total: int | None) -> str:
    """A size without its unit, which is that of `pair`'s; "?" where unknown."""
    if value is None:
        return "?"
    if total is None:
        return format_bytes(value)
    unit, name = _unit(max(total, value))
    return _figure(value / unit, name)


def percent(used: int | None, total: int | None) -> str:
    """The share in percent; "? %" where unknown."""
    return f"{100 * used / total:.0f} %" if used is not None and total else "? %"


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` cells, its middle left out: a run's name differs at both ends."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"


def _unit(size: int) -> tuple[int, str]:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size >= unit:
            return unit, name
    return KIB, "KiB"


def _figure(value: float, unit_name: str) -> str:
    return f"{value:.2f}" if unit_name == "GiB" else f"{value:.0f}"
