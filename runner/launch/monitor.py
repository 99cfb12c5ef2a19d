"""Watch the GPUs or the host, and the runs on them: a report an interval. Imports no torch.

Standard library and the monitor's parts; what reads plans is imported where a run is followed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner.common.output import Output
from runner.machine.health import XidWatch, read_health
from runner.machine.nvml import Nvml, NvmlUnavailable
from runner.machine.schedule import Schedule
from runner.report.monitor.runs import LiveRuns
from runner.report.monitor.snapshot import Snapshot
from runner.report.monitor.watch import Watch, samples_in
from runner.runs.folder import RunFolder
from runner.runs.outcome import Reason
from runner.runs.state import state_of

if TYPE_CHECKING:
    from runner.launch.follow import Progress


def reports(
    root: Path,
    followed: RunFolder | None,
    interval: float,
    once: bool,
    out: Output,
    stack: contextlib.ExitStack,
) -> Iterator[Snapshot]:
    """The reports of a machine and of the runs under `root`, until the followed run ends.

    The first report at once, then one an interval; the last when the followed run ends.

    Args:
        once: the first alone.
        out: is told where the GPUs can't be asked.
        stack: closes what was opened for it.
    """
    machine = _watch_machine(root, followed, interval, once, out, stack)
    # asked before each report and never after it: one that comes in between has a report to come
    ended = _has_ended(followed)
    machine.sample()
    yield machine.report()
    period = interval / samples_in(interval)
    schedule = Schedule(time.monotonic())
    taken = 0
    while not (once or ended):
        time.sleep(schedule.wait_seconds(time.monotonic(), period))
        ended = _has_ended(followed)
        machine.sample()
        taken += 1
        if taken == samples_in(interval) or ended:
            taken = 0
            yield machine.report()


def _has_ended(followed: RunFolder | None) -> bool:
    if followed is None:
        return False
    return followed.is_ended() or state_of(followed) == Reason.LOST


def _watch_machine(
    root: Path,
    followed: RunFolder | None,
    interval: float,
    once: bool,
    out: Output,
    stack: contextlib.ExitStack,
) -> Watch:
    """The watch, over the GPUs where NVML can be opened."""
    runs = LiveRuns(root, followed)
    try:
        nvml = stack.enter_context(Nvml())
    except NvmlUnavailable as error:
        if error.fatal:
            out.say(f"warning: NVML can't be used: {error}; showing the host only")
        return Watch(None, runs, interval_seconds=interval)
    health = partial(read_health, nvml)
    if once:  # one look hears no events
        return Watch(nvml, runs, interval_seconds=interval, health=health)
    xids = stack.enter_context(XidWatch(nvml))
    return Watch(nvml, runs, interval_seconds=interval, health=health, xids=xids.seen)


class RunLine:
    """Where the followed run stands, or how it ended."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._progress: Progress | None = None

    def lines(self) -> list[str]:
        """For people; what the run's records gained since the last call is taken in."""
        if self.folder.is_ended():
            from runner.report.outcome_lines import outcome_lines
            from runner.report.run import read_report

            return outcome_lines(read_report(self.folder))
        if self._progress is None:
            from runner.launch.follow import progress_of

            self._progress = progress_of(self.folder)
        self._progress.update()
        return [self.folder.name, f"  {self._progress.line(200)}"]

    def text(self) -> str:
        """For records: on one line as long as the run lives."""
        lines = self.lines()
        return ("\n" if self.folder.is_ended() else "").join(lines)
