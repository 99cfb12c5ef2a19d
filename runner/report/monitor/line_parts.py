"""Parts of lines as rich texts: labels, two ends, process tables.

May import the stdlib, the monitor's snapshot and bars, runner.common.units, and rich inside
functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from runner.common.units import format_bytes
from runner.report.monitor.bars import shorten
from runner.report.monitor.snapshot import ProcessView

if TYPE_CHECKING:
    from rich.text import Text


LABEL = 9  # "  budget " before each bar


def dim_label(text: str) -> Text:
    """What stands before a bar, in a Text whose further parts have styles of their own."""
    from rich.text import Text

    return Text().append(text.ljust(LABEL), style="dim")


def labelled_line(label: str, text: str, width: int) -> Text:

    line = dim_label(f"  {label}")
    line.append(shorten(text, max(8, width - LABEL)), style="cyan")
    return line


def at_both_ends(left: Text, right: Text, width: int) -> Text:
    """Two texts at the two ends of a line; the left one gives way."""
    from rich.text import Text

    room = width - right.cell_len - 2
    left = left.copy()
    if left.cell_len > room:
        left.truncate(max(0, room), overflow="ellipsis")
    blank = " " * max(2, width - left.cell_len - right.cell_len)
    return Text.assemble(left, blank, right)


def wrapped(parts: list[tuple[str, str]], width: int) -> Iterator[Text]:
    """Parts on as few lines as hold them, with a dot between."""
    from rich.text import Text

    line = Text("  ")
    for words, style in parts:
        if line.cell_len > 2 and line.cell_len + 3 + len(words) > width:
            yield line
            line = Text("  ")
        if line.cell_len > 2:
            line.append(" · ", style="dim")
        line.append(words, style=style)
    yield line


def process_lines(views: Sequence[ProcessView], width: int, most: int) -> Iterator[Text]:
    """The largest processes, and how many more there are."""
    from rich.text import Text

    yield Text(f"  {'pid':>8}  {'memory':>10}  {'command':<15}  run", style="dim")
    room = max(8, width - 41)
    for view in views[:most]:
        memory = "?" if view.used_bytes is None else format_bytes(view.used_bytes)
        line = Text(f"  {view.pid:>8}  {memory:>10}  {shorten(view.command or '?', 15):<15}")
        if view.run:
            line.append(f"  {shorten(view.run, room)}", style="cyan")
        yield line
    more = views[most:]
    if more:
        known = [view.used_bytes for view in more if view.used_bytes is not None]
        total = f", {format_bytes(sum(known))} together" if len(known) == len(more) else ""
        yield Text(f"  {'':>8}  and {len(more)} more{total}", style="dim")
