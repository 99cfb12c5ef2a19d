"""A Snapshot's GPUs, host and runs as lines.

May import the stdlib, this package, runner.common.units, and rich inside functions. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.common.units import format_bytes, format_duration
from runner.report.monitor.bars import bar, in_unit_of, pair, percent, sparkline, style_of
from runner.report.monitor.device_words import (
    budget_marks,
    card_figures,
    fullest_share,
    health_words,
)
from runner.report.monitor.line_parts import (
    LABEL,
    at_both_ends,
    dim_label,
    labelled_line,
    process_lines,
    wrapped,
)
from runner.report.monitor.snapshot import (
    HOST_KEY,
    DeviceView,
    HostView,
    RunView,
    Snapshot,
    card_key,
    run_key,
)

if TYPE_CHECKING:
    from rich.text import Text


FIGURES = 38  # "  141.20 / 141.20 GiB   25 %  max 141.20" behind it

MOST_BAR = 60

LEAST_BAR = 8

_CORES_IN_FIGURES = 16


@dataclass(frozen=True)
class Drawing:
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
        yield at_both_ends(title, Text("   ".join(card_figures(device))), self.width)
        yield self._memory("memory", device.used_bytes, device.total_bytes, device.used_max_bytes,
                           style=style_of(fullest_share(device)),
                           marks=budget_marks(device))  # fmt: skip
        if self.history:
            yield from self._past(card_key(device.index), device.total_bytes)
        yield from wrapped(health_words(device), self.width)
        yield from self._mig(device)
        for share in device.runs:
            yield from self._run(share.run, share.budget_bytes, share.own_bytes,
                                 share.own_max_bytes, device.total_bytes)  # fmt: skip
        if device.processes is None:
            yield Text("  processes unknown: the driver does not list them", style="dim")
        elif not device.processes:
            yield Text("  no processes", style="dim")
        elif most_processes:
            yield from process_lines(device.processes, self.width, most_processes)

    def host(self, host: HostView) -> Iterator[Text]:
        """A machine without a GPU."""
        from rich.text import Text

        load = " ".join(f"{load:.2f}" for load in host.load)
        yield at_both_ends(Text("host", style="bold"), Text(f"load {load}"), self.width)
        fraction = host.used_bytes / host.total_bytes
        yield self._memory("memory", host.used_bytes, host.total_bytes, host.used_max_bytes,
                           style=style_of(fraction))  # fmt: skip
        if self.history:
            yield from self._past(HOST_KEY, host.total_bytes)
        yield self._cores(host)

    def _cores(self, host: HostView) -> Text:

        text = dim_label("  cores")
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
            yield labelled_line("run", run.name + "  (ended)", self.width)
            if self.history:
                yield from self._past(run_key(run.name), run.budget_bytes, until_now=False)
            return
        if run.waiting:
            yield labelled_line("run", run.name + "  (waits for a GPU)", self.width)
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

        yield labelled_line("run", name, self.width)
        if not budget_bytes:
            text = dim_label("  memory")
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
        text = dim_label(f"  {label}")
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
        text = dim_label("  past")
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
