"""Follow a run from its records: one live line in a terminal, plain lines elsewhere.

Reads metrics.jsonl, memory.jsonl and events.jsonl; the run does not depend on it. In `follow`,
which starts the run, Ctrl-C is passed on: once asks the supervisor to end the run in order, twice
to end it now. `runner attach` shows the same view of a run that was started elsewhere.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable

from runner.common import terminal
from runner.common.output import Output, field
from runner.common.tail import Tail
from runner.common.units import format_bytes, format_duration
from runner.engines.progress import planned_trainings
from runner.engines.registry import engine_of
from runner.engines.render import read_any_plan
from runner.plans.base import Plan
from runner.report.stopping import stop_in_words
from runner.runs.folder import RunFolder
from runner.runs.metrics import is_loss_line, time_of
from runner.runs.record_types import LossLine
from runner.runs.records import number, object_at, status_of, whole

POLL_SECONDS = 0.2
_JUMP_FACTOR = 100.0  # a step that took so many times the usual is a clock that was set
PACE_RECORDS = 200  # what the speed is worked out from
PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal


def seconds_a_step(records: Iterable[tuple[float, int]]) -> float | None:
    """The mean of the time between steps, of (unix seconds, step) in order; None where unknown.

    A clock that was set meanwhile gives a span that is negative, or far longer than the others:
    those are left out.
    """
    spans, before = [], None
    for now, step in records:
        if before is not None and step > before[1] and now > before[0]:
            spans.append((now - before[0], step - before[1]))
        before = (now, step)
    if not spans:
        return None
    rates = sorted(seconds / steps for seconds, steps in spans)
    usual = rates[len(rates) // 2]
    kept = [span for span in spans if span[0] / span[1] <= _JUMP_FACTOR * usual] or spans
    return sum(span[0] for span in kept) / sum(span[1] for span in kept)


class Progress:
    """Where a run stands, from its records."""

    def __init__(
        self, folder: RunFolder, plan: Plan, since_unix_seconds: float | None = None
    ) -> None:
        """Its speed is that since `since_unix_seconds`; without it, from now on."""
        self._folder, self._plan, self._engine = folder, plan, engine_of(plan)
        self._metrics, self._memory = Tail(folder.metrics), Tail(folder.memory)
        self._events = Tail(folder.events, newest_bytes=0)
        self.last: LossLine | None = None
        self.phase = "starting"
        self.waiting = ""
        """Its place in the queue for a GPU, while it waits."""
        self.own_bytes: int | None = None
        self._paced: deque[tuple[float, int]] = deque(maxlen=PACE_RECORDS)
        self._total = plan.planned_steps
        self._trainings: dict[str, int | None] = {}
        self._before = 0
        """Steps of the trainings before the one that runs, as last logged."""
        self._started = time.time() if since_unix_seconds is None else since_unix_seconds

    def update(self) -> list[str]:
        """Take in what is new; the warnings among it, to be said at once."""
        for record in self._metrics.read():
            if not is_loss_line(record):
                continue
            if self.last is not None and record.get("phase") != self.last.get("phase"):
                self._paced.clear()  # another training has a speed of its own
                self._before = int(self.last["step"])
            now = time_of(record)
            # an earlier start says nothing of today's speed; after the first line of this one all
            # are of it, be the clock set back meanwhile
            if now is not None and (self._paced or now >= self._started):
                self._paced.append((now, record["step"]))
            self.last = record
        for record in self._memory.read():
            own = record.get("own_bytes")
            self.own_bytes = own if whole(own) else None
        self.waiting = str(object_at(self._folder.queue).get("text", ""))
        status = status_of(self._folder)
        # an engine says what it does; a toolkit's losses say which training they are of
        at = self._engine.stage(self._folder)
        stage = at.name if at else None
        logged = self.last.get("phase") if self.last else None
        self.phase = str(status.get("phase") or stage or logged or self.phase)
        self._trainings = planned_trainings(self._folder, self._plan)
        self._total = self._total or status.get("planned_steps")
        return [
            str(e.get("text"))
            for e in self._events.read()
            if e.get("kind") in ("warning", "signal")
        ]

    def line(self, width: int = 100) -> str:
        """step 76/125 ━━━━────  loss 0.412  lr 1e-05  18.2k tok/s  5.0/12 GiB  0:41 left"""
        if self.waiting:
            return field("waiting", self.waiting)[:width]
        last = self.last
        step = last["step"] if last else 0
        total = self._total
        left_of = ""
        parts = []
        if last is None or self.phase not in ("training",):
            parts.append(self.phase)
        name = str(last.get("phase") if last else None)
        others = self.phase != name and self._engine.counts_by_training
        if name in self._trainings and self._engine.counts_by_training:
            step, total = step - self._before, self._trainings[name]
            left_of = f" of {name}"
        if last is not None and not others:
            parts.append(f"step {step}/{total}" if total else f"step {step}")
            if total:
                filled = round(24 * max(0.0, min(1.0, step / total)))
                parts.append("━" * filled + "─" * (24 - filled))
            loss = last["loss"]
            parts.append(f"loss {loss:.3f}" if number(loss) else "loss not finite")
            learning_rate, rate = last.get("learning_rate"), last.get("tokens_per_second")
            if number(learning_rate):
                parts.append(f"lr {learning_rate:.2g}")
            if number(rate) and rate:
                parts.append(f"{rate / 1000:.1f}k tok/s" if rate >= 1000 else f"{rate:.0f} tok/s")
        limit = self._plan.budget.limit_bytes
        if self.own_bytes is not None:
            parts.append(
                format_bytes(self.own_bytes) + (f" of {format_bytes(limit)}" if limit else "")
            )
        pace = seconds_a_step(self._paced)
        if total and pace is not None and step < total and not others:
            parts.append(f"{format_duration(pace * (total - step))} left{left_of}")
            parts += self._then(name) if left_of else []
        return "  ".join(parts)[:width]

    def _then(self, name: str) -> list[str]:
        """Which trainings come after the one called `name`."""
        names = list(self._trainings)
        return [
            f"then {each}" + (f" ({count} steps)" if (count := self._trainings[each]) else "")
            for each in names[names.index(name) + 1 :]
        ]


def progress_of(folder: RunFolder, since_unix_seconds: float | None = None) -> Progress:
    """Where a run stands, by the plan in its folder. Raises RunnerError where that can't be read.

    As Progress, its speed is that since `since_unix_seconds`.
    """
    return Progress(folder, read_any_plan(folder.plan), since_unix_seconds)


class View:
    """A run's progress as it is shown: one live line in a terminal, else a line now and then."""

    def __init__(self, progress: Progress, out: Output, prefix: str = "") -> None:
        self.progress = progress
        self._out, self._prefix = out, prefix
        self._live = sys.stderr.isatty()
        self._last_said, self._waiting = time.monotonic(), ""

    def look(self, *, ended: bool) -> None:
        """Take in what is new, say the warnings among it, and show where the run stands."""
        progress, prefix = self.progress, self._prefix
        warnings = progress.update()
        self.clear()
        for text in warnings:
            self._out.say(f"{prefix}{field('guard', text)}")
        if ended:
            return
        if self._live:
            terminal.draw_line(prefix + progress.line(2000))
        elif progress.waiting:
            if progress.waiting != self._waiting:
                self._out.say(prefix + progress.line(2000))
            self._waiting, self._last_said = progress.waiting, time.monotonic()
        elif time.monotonic() - self._last_said >= PLAIN_SECONDS:
            self._last_said = time.monotonic()
            self._out.say(prefix + progress.line(200))

    def clear(self) -> None:
        """Make room for other lines."""
        if self._live:
            terminal.erase_line()


def follow(
    folder: RunFolder,
    plan: Plan,
    supervisor: subprocess.Popen[bytes],
    out: Output,
    prefix: str = "",
) -> int:
    """Follow until the supervisor ends; its exit code, which is the run's."""
    view = View(Progress(folder, plan), out, prefix)
    asked = 0
    while True:
        try:
            code = supervisor.poll()
            view.look(ended=code is not None)
            if code is not None:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisor.wait(POLL_SECONDS)
        except KeyboardInterrupt:
            asked += 1
            view.clear()
            supervisor.send_signal(2)
            out.say(
                field(
                    "stopping",
                    "it only waits for a GPU"
                    if view.progress.waiting
                    else f"{stop_in_words(folder, plan)}; Ctrl-C again kills"
                    if asked == 1
                    else "killing",
                )
            )
    if code < 0:  # the supervisor itself was killed
        return 128 - code
    return code
