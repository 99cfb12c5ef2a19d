"""`runner monitor`: show GPUs or host live, and one run if one is named.

Standard library, the monitor's parts and rich (inside a function). Each way of showing is a
function that is given a Snapshot an interval.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runner.common import terminal
from runner.common.errors import UsageError
from runner.common.output import Output
from runner.launch.monitor import RunLine, reports
from runner.report.monitor import csv as monitor_csv
from runner.report.monitor import metrics as monitor_metrics
from runner.report.monitor.snapshot import Snapshot
from runner.report.monitor.view import render
from runner.runs.find import default_root, find_run

Show = Callable[[Snapshot], None]
LONGEST_INTERVAL_SECONDS = 86_400.0


@dataclass(frozen=True)
class How:
    """How the views are given; at most one of the four, else they are drawn."""

    once: bool = False
    as_json: bool = False
    as_csv: bool = False
    prometheus: str | None = None  # PORT or ADDRESS:PORT
    textfile: Path | None = None

    def check(self) -> None:
        """Raises UsageError for what excludes each other."""
        chosen = [
            name
            for name, given in (
                ("--json", self.as_json),
                ("--csv", self.as_csv),
                ("--prometheus", self.prometheus is not None),
                ("--textfile", self.textfile is not None),
            )
            if given
        ]
        if len(chosen) > 1:
            raise UsageError(
                f"{' and '.join(chosen)} exclude each other: expected one of them",
                "start `runner monitor` once for each",
            )
        if self.once and self.prometheus is not None:
            raise UsageError(
                "--once and --prometheus exclude each other: what is scraped has to stay",
                "--once --textfile FILE.prom writes the metrics once",
            )


def watch(run: str | None, *, interval: float, how: How, runs: Path | None) -> int:
    """Show views until Ctrl-C or, with a RUN, until that run has ended; exit code 0.

    Ctrl-C in the drawn view ends it with 0; elsewhere KeyboardInterrupt is passed on (exit 130).
    """
    how.check()
    if not (math.isfinite(interval) and interval <= LONGEST_INTERVAL_SECONDS):
        raise UsageError(
            f"--interval {interval}: expected seconds from 0.1 to {LONGEST_INTERVAL_SECONDS:.0f}"
        )
    root = runs or default_root()
    followed = find_run(run, root) if run else None
    line = RunLine(followed) if followed else None
    out = Output(as_json=how.as_json)
    with contextlib.ExitStack() as stack:
        show = _shown_by(how, interval, line, out, stack)
        for snapshot in reports(root, followed, interval, how.once, out, stack):
            show(snapshot)
    return 0


def _shown_by(
    how: How, interval: float, line: RunLine | None, out: Output, stack: contextlib.ExitStack
) -> Show:
    """What is done with each report."""
    if how.as_json:
        return partial(_as_json, line=line, once=how.once, out=out)
    if how.as_csv:
        terminal.put(monitor_csv.header())
        return _as_csv
    if how.prometheus is not None or how.textfile is not None:
        return _as_metrics(how, out)
    return _drawn(how, interval, line, stack)


def _as_json(snapshot: Snapshot, *, line: RunLine | None, once: bool, out: Output) -> None:
    """With --once an indented document, else a line of JSON."""
    record = snapshot.to_record()
    if line is not None:
        record["run"] = {"name": line.folder.name, "line": line.text()}
    if once:
        out.result(record, [])
    else:
        terminal.put_json(record)


def _as_csv(snapshot: Snapshot) -> None:
    terminal.put("\n".join(monitor_csv.rows(snapshot)))


class Latest:
    """The last report, for those who ask in between."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None

    def keep(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __call__(self) -> Snapshot | None:
        return self._snapshot


def _as_metrics(how: How, out: Output) -> Show:
    """Served, or written to a file; both tell of the last report."""
    latest = Latest()
    if how.textfile is None:
        endpoint = monitor_metrics.parse_endpoint(how.prometheus or "")
        out.say(f"metrics at {monitor_metrics.serve(endpoint, latest)}")
        return latest.keep
    path = how.textfile.absolute()
    monitor_metrics.check_textfile(path)
    metrics = monitor_metrics.registry(latest)

    def write(snapshot: Snapshot) -> None:
        first = latest() is None
        latest.keep(snapshot)
        try:
            monitor_metrics.write_textfile(path, metrics)
        except UsageError as error:
            if first:
                raise
            out.say(f"warning: {error}; the file is as it was")  # a full disk may have room again

    return write


def _drawn(how: How, interval: float, line: RunLine | None, stack: contextlib.ExitStack) -> Show:
    """In a terminal a view that is drawn anew in its place; elsewhere one after the other."""
    from rich.live import Live

    console = terminal.console()
    every = None if how.once else interval
    if how.once or not console.is_terminal:
        return lambda snapshot: console.print(
            render(snapshot, line.lines() if line else (), every), end=""
        )

    latest = Latest()

    def leave() -> None:
        """The alternate screen vanishes with the view: what it showed last stays."""
        snapshot = latest()
        if snapshot is not None:
            console.print(render(snapshot, line.lines() if line else (), every), end="")

    stack.callback(leave)
    stack.enter_context(contextlib.suppress(KeyboardInterrupt))
    live = stack.enter_context(Live(console=console, auto_refresh=False, screen=True))

    def show(snapshot: Snapshot) -> None:
        latest.keep(snapshot)
        live.update(render(snapshot, line.lines() if line else (), every), refresh=True)

    return show
