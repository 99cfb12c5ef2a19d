"""How `runner monitor` looks: a Snapshot as lines that fit the terminal's width and height.

May import the stdlib, this package, runner.common.units, and rich inside functions. Reads nothing:
what is shown is in the Snapshot.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.common.terminal import clean_line
from runner.report.monitor.drawing import Drawing
from runner.report.monitor.line_parts import at_both_ends, process_lines
from runner.report.monitor.snapshot import Snapshot

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text


# What is left out, step by step, where a terminal is not high enough: process lines per GPU (the
# first is where there is room), then histories.
_STEPS = ((10, True), (3, True), (0, True), (0, False))


def render(
    snapshot: Snapshot, head: Sequence[str] = (), interval_seconds: float | None = None
) -> View:
    """The snapshot as a rich renderable. `head` are lines to put first, such as a run's own."""
    return View(snapshot, tuple(head), interval_seconds)


@dataclass(frozen=True)
class View:
    """What rich draws, in whatever width and height it finds."""

    snapshot: Snapshot
    head: tuple[str, ...]
    interval_seconds: float | None  # None: a single view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[Text] = []
        for processes, history in _STEPS:
            lines = list(_lines(self, options.max_width, processes, history))
            if options.height is None or len(lines) <= options.height:
                break
        for line in map(_fit, lines):
            line.rstrip()
            line.truncate(options.max_width, overflow="ellipsis")
            line.no_wrap = True
            line.end = "\n"
            yield line


def _fit(line: Text) -> Text:
    """The line as it is, or without its colours where something foreign in it had to be escaped."""
    from rich.text import Text

    cleaned = clean_line(line.plain)
    return line if cleaned == line.plain else Text(cleaned)


def _lines(view: View, width: int, processes: int, history: bool) -> Iterator[Text]:
    """All lines of a view; some may be wider than `width` and are cut at the end."""
    from rich.text import Text

    snapshot = view.snapshot
    yield _title(view, width)
    for line in view.head:
        for part in textwrap.wrap(clean_line(line), width, subsequent_indent="  "):
            yield Text(part, style="bold")
    if snapshot.note:
        yield Text(snapshot.note, style="yellow")
    drawing = Drawing(snapshot, width, history)
    shown = set()
    for device in snapshot.devices:
        yield Text()
        yield from drawing.device(device, processes)
        shown |= {share.run for share in device.runs}
    if snapshot.host is not None:
        yield Text()
        yield from drawing.host(snapshot.host)
    for run in snapshot.runs:
        if run.name not in shown:
            yield Text()
            yield from drawing.run(run)
    if snapshot.host is not None:
        host = snapshot.host
        for title, views in (("of runs", host.run_processes), ("biggest", host.biggest)):
            limit = processes if title == "of runs" else min(processes, len(views))
            if views and limit:
                yield Text()
                yield Text(f"processes {title}", style="dim")
                yield from process_lines(views, width, limit)


def _title(view: View, width: int) -> Text:
    from rich.text import Text

    snapshot = view.snapshot
    clock = time.strftime("%H:%M:%S", time.localtime(snapshot.time_unix_seconds))
    parts = [clock]
    if view.interval_seconds is not None:
        parts.append(f"every {view.interval_seconds:g} s")
    if snapshot.driver_version:
        parts.append(f"driver {snapshot.driver_version}")
    return at_both_ends(
        Text("runner monitor", style="bold"), Text(" · ".join(parts), style="dim"), width
    )
