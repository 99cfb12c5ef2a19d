"""How `runner monitor` looks: a Snapshot as lines that fit the terminal's width and height.

May import the stdlib, the monitor's snapshot and bars, runner.common.units, and rich inside
functions. Reads nothing: what is shown is in the Snapshot.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.common.terminal import clean_line
from runner.common.units import format_bytes, format_duration
from runner.report.monitor.bars import bar, in_unit_of, pair, percent, shorten, sparkline, style_of
from runner.report.monitor.snapshot import (
    HOST_KEY,
    DeviceView,
    HostView,
    ProcessView,
    RunView,
    Snapshot,
    card_key,
    run_key,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

LABEL = 9  # "  budget " before each bar
FIGURES = 38  # "  141.20 / 141.20 GiB   25 %  max 141.20" behind it
MOST_BAR = 60
LEAST_BAR = 8
# What is left out, step by step, where a terminal is not high enough: process lines per GPU (the
# first is where there is room), then histories.
_STEPS = ((10, True), (3, True), (0, True), (0, False))
# Clock limits that mean that something is wrong, not only that the GPU is busy.
_BAD_LIMITS = ("hardware", "thermal", "brake")
_CORES_IN_FIGURES = 16


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
    drawing = _Drawing(snapshot, width, history)
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
                yield from _processes(views, width, limit)


def _title(view: View, width: int) -> Text:
    from rich.text import Text

    snapshot = view.snapshot
    clock = time.strftime("%H:%M:%S", time.localtime(snapshot.time_unix_seconds))
    parts = [clock]
    if view.interval_seconds is not None:
        parts.append(f"every {view.interval_seconds:g} s")
    if snapshot.driver_version:
        parts.append(f"driver {snapshot.driver_version}")
    return _ends(Text("runner monitor", style="bold"), Text(" · ".join(parts), style="dim"), width)


@dataclass(frozen=True)
class _Drawing:
    """What all lines of one view share."""

    snapshot: Snapshot
    width: int
    history: bool

    @property
    def bar_width(self) -> int:
        return max(LEAST_BAR, min(MOST_BAR, self.width - LABEL - FIGURES))

    def device(self, device: DeviceView, most_processes: int) -> Iterator[Text]:
        """A GPU: what it is, its memory, its health, its runs, its processes."""
        from rich.text import Text

        title = Text(f"GPU {device.index}  {device.name or device.uuid or ''}".rstrip(), "bold")
        if device.failure:
            yield title
            yield Text(f"  {device.failure}", style="bold red")
            return
        yield _ends(title, Text("   ".join(_figures(device))), self.width)
        yield self._memory("memory", device.used_bytes, device.total_bytes, device.used_max_bytes,
                           style=style_of(_share(device)), marks=_marks(device))  # fmt: skip
        if self.history:
            yield from self._past(card_key(device.index), device.total_bytes)
        yield from _wrapped(_health(device), self.width)
        yield from self._mig(device)
        for share in device.runs:
            yield from self._run(share.run, share.budget_bytes, share.own_bytes,
                                 share.own_max_bytes, device.total_bytes)  # fmt: skip
        if device.processes is None:
            yield Text("  processes unknown: the driver does not list them", style="dim")
        elif not device.processes:
            yield Text("  no processes", style="dim")
        elif most_processes:
            yield from _processes(device.processes, self.width, most_processes)

    def host(self, host: HostView) -> Iterator[Text]:
        """A machine without a GPU."""
        from rich.text import Text

        load = " ".join(f"{load:.2f}" for load in host.load)
        yield _ends(Text("host", style="bold"), Text(f"load {load}"), self.width)
        fraction = host.used_bytes / host.total_bytes
        yield self._memory("memory", host.used_bytes, host.total_bytes, host.used_max_bytes,
                           style=style_of(fraction))  # fmt: skip
        if self.history:
            yield from self._past(HOST_KEY, host.total_bytes)
        yield self._cores(host)

    def _cores(self, host: HostView) -> Text:

        text = _label("  cores")
        if len(host.cpu_percent) <= _CORES_IN_FIGURES and self.width >= 80:
            text.append("  ".join(f"{share:.0f} %" for share in host.cpu_percent), style="")
            return text
        spark = sparkline([round(share) for share in host.cpu_percent], 100)
        spark.truncate(max(LEAST_BAR, self.width - LABEL - 12))
        text.append_text(spark)
        mean = sum(host.cpu_percent) / max(1, len(host.cpu_percent))
        text.append(f"  {mean:.0f} % each", style="")
        return text

    def run(self, run: RunView) -> Iterator[Text]:
        """A run that is on none of the GPUs shown: of the CPU, or of a GPU that can't be read."""
        from rich.text import Text

        if run.ended:
            yield _labelled("run", run.name + "  (ended)", self.width)
            if self.history:
                yield from self._past(run_key(run.name), run.budget_bytes, until_now=False)
            return
        if run.waiting:
            yield _labelled("run", run.name + "  (waits for a GPU)", self.width)
            return
        yield from self._run(run.name, run.budget_bytes, run.own_bytes, run.own_max_bytes, None)
        if run.own_bytes is None:
            yield Text("  its guard has no figure of its memory", style="dim")

    def _run(
        self,
        name: str,
        budget_bytes: int | None,
        own_bytes: int | None,
        own_max_bytes: int | None,
        total_bytes: int | None,
    ) -> Iterator[Text]:

        yield _labelled("run", name, self.width)
        if not budget_bytes:
            text = _label("  memory")
            own = "unknown" if own_bytes is None else format_bytes(own_bytes)
            text.append(f"{own}, no budget", style="")
            yield text
        else:
            fraction = None if own_bytes is None else own_bytes / budget_bytes
            yield self._memory("budget", own_bytes, budget_bytes, own_max_bytes,
                               style=style_of(fraction))  # fmt: skip
        if self.history:
            yield from self._past(run_key(name), budget_bytes or total_bytes)

    def _memory(
        self,
        label: str,
        used: int | None,
        total: int | None,
        most: int | None,
        *,
        style: str,
        marks: Sequence[float] = (),
    ) -> Text:
        """A bar with its figures."""

        fraction = used / total if used is not None and total else None
        text = _label(f"  {label}")
        text.append_text(bar(self.bar_width, fraction, style, marks))
        figures = f"{pair(used, total):>19} {percent(used, total):>6}"
        text.append(figures, style="" if style == "green" else style)
        if most is not None:
            text.append(f"  max {in_unit_of(most, total)}", style="dim")
        return text

    def _past(self, key: str, top: int | None, *, until_now: bool = True) -> Iterator[Text]:
        """A sparkline as wide as the bars; none where there is nothing to show."""

        history = self.snapshot.histories.get(key)
        if history is None:
            return
        now = self.snapshot.time_unix_seconds if until_now else None
        values = history.latest(self.bar_width, now)
        known = [value for value in values if value is not None]
        if len(known) < 2:  # the present is in the bar
            return
        text = _label("  past")
        text.append_text(sparkline(values, top))
        span = format_duration(self.bar_width * history.column_seconds)
        text.append(f"  last {span}, most {format_bytes(max(known))}", style="dim")
        yield text

    def _mig(self, device: DeviceView) -> Iterator[Text]:
        """The MIG devices of a GPU in MIG mode."""
        from rich.text import Text

        if not device.mig_mode:
            return
        if not device.mig_devices:
            what = "no MIG devices" if device.mig_devices == () else "MIG devices unknown"
            yield Text(f"  in MIG mode, {what}", style="cyan")
        for part in device.mig_devices or ():
            used, total = part.used_bytes, part.total_bytes
            fraction = used / total if used is not None and total else None
            line = self._memory(f"MIG {part.index}", used, total, None, style=style_of(fraction))
            name = (part.name or part.uuid or "").rpartition("MIG ")[2]
            line.append(f"  {name}", style="cyan")
            yield line


def _figures(device: DeviceView) -> list[str]:
    """Utilization, power and temperature, as a GPU's first line has them."""

    def figure(value: float | None) -> str:
        return "?" if value is None else f"{value:.0f}"

    limit = device.power_limit_watts
    power = figure(device.power_watts) + (f" / {limit:.0f}" if limit is not None else "")
    return [
        f"{figure(device.utilization_percent)} %",
        f"{power} W",
        f"{figure(device.temperature_celsius)} °C",
    ]


def _share(device: DeviceView) -> float | None:
    """What a GPU's colour says: the fullest budget on it, else the GPU's own use."""
    shares = [
        run.own_bytes / run.budget_bytes
        for run in device.runs
        if run.own_bytes is not None and run.budget_bytes
    ]
    if shares:
        return max(shares)
    if device.used_bytes is None or not device.total_bytes:
        return None
    return device.used_bytes / device.total_bytes


def _marks(device: DeviceView) -> list[float]:
    """Where in a GPU's bar the budgets on it end, one on top of the other."""
    if not device.total_bytes:
        return []
    marks, reach = [], 0
    for run in device.runs:
        if run.budget_bytes is not None:
            reach += run.budget_bytes
            marks.append(reach / device.total_bytes)
    return marks


def _health(device: DeviceView) -> list[tuple[str, str]]:
    """Clocks, ECC and XID in words, with a style each."""
    limits = device.clock_limits
    if limits is None:
        parts = [("clocks ?", "dim")]
    else:
        held = [limit for limit in limits if limit != "idle"]
        bad = any(word in limit for limit in held for word in _BAD_LIMITS)
        if held:
            parts = [(f"clocks held by: {', '.join(held)}", "bold red" if bad else "yellow")]
        else:
            parts = [("clocks idle" if limits else "clocks free", "dim")]
    corrected, uncorrected = device.ecc_corrected, device.ecc_uncorrected
    if corrected is None and uncorrected is None:
        parts.append(("ECC ?", "dim"))
    else:
        told = [
            f"{'?' if count is None else count} {kind}"
            for count, kind in ((corrected, "corrected"), (uncorrected, "uncorrected"))
        ]
        style = "bold red" if uncorrected else "yellow" if corrected else "dim"
        parts.append((f"ECC {', '.join(told)}", style))
    if device.xids is None:
        parts.append(("XID ?", "dim"))
    elif device.xids:
        last = ", ".join(str(xid) for xid in device.xids[-5:])
        more = "" if len(device.xids) <= 5 else f" ({len(device.xids)} in all)"
        parts.append((f"XID {last}{more}", "bold red"))
    else:
        parts.append(("no XID", "dim"))
    return parts


def _wrapped(parts: list[tuple[str, str]], width: int) -> Iterator[Text]:
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


def _processes(views: Sequence[ProcessView], width: int, most: int) -> Iterator[Text]:
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


def _label(text: str) -> Text:
    """What stands before a bar, in a Text whose further parts have styles of their own."""
    from rich.text import Text

    return Text().append(text.ljust(LABEL), style="dim")


def _labelled(label: str, text: str, width: int) -> Text:

    line = _label(f"  {label}")
    line.append(shorten(text, max(8, width - LABEL)), style="cyan")
    return line


def _ends(left: Text, right: Text, width: int) -> Text:
    """Two texts at the two ends of a line; the left one gives way."""
    from rich.text import Text

    room = width - right.cell_len - 2
    left = left.copy()
    if left.cell_len > room:
        left.truncate(max(0, room), overflow="ellipsis")
    blank = " " * max(2, width - left.cell_len - right.cell_len)
    return Text.assemble(left, blank, right)
