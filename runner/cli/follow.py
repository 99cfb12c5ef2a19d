"""Follow a run from its records: one live line in a terminal, plain lines elsewhere.

Reads metrics.jsonl, memory.jsonl and events.jsonl; the run does not depend on it. Ctrl-C is passed
on: once asks the supervisor to end the run in order, twice to end it now.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runner import durable
from runner.cli.output import Output, field
from runner.folder import RunFolder
from runner.plan_base import PlanBase
from runner.units import format_bytes, format_duration

POLL_SECONDS = 0.2
PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal


class Tail:
    """The records that were appended to a JSONL file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """New whole lines; a line in mid-write waits for the next look."""
        out = []
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as stream:
            if self._path.stat().st_size < self._offset:
                self._offset = 0  # a resumed run took lines out
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                with contextlib.suppress(ValueError):
                    out.append(json.loads(line))
        return out


class Progress:
    """Where a run stands, from its records."""

    def __init__(self, folder: RunFolder, plan: PlanBase) -> None:
        self._folder, self._plan = folder, plan
        self._metrics, self._memory = Tail(folder.metrics), Tail(folder.memory)
        self._events = Tail(folder.events)
        self.last: dict[str, Any] = {}
        self.phase = "starting"
        self.waiting = ""
        """Its place in the queue for a GPU, while it waits."""
        self.own_bytes: int | None = None
        self._first: tuple[float, int] | None = None
        self._seconds_a_step: float | None = None
        self._total = plan.planned_steps
        self._started = time.time()

    def update(self) -> list[str]:
        """Take in what is new; the warnings among it, to be said at once."""
        for record in self._metrics.read():
            if "loss" in record:
                if float(record["time_unix_seconds"]) < self._started:
                    continue  # of an earlier start: it says nothing of today's speed
                now, step = float(record["time_unix_seconds"]), int(record["step"])
                if self._first is None:
                    self._first = (now, step)
                elif step > self._first[1]:
                    self._seconds_a_step = (now - self._first[0]) / (step - self._first[1])
                self.last = record
        for record in self._memory.read():
            self.own_bytes = record.get("own_bytes")
        queue = durable.read_json(self._folder.queue)
        self.waiting = str(queue.get("text", "")) if isinstance(queue, dict) else ""
        status = durable.read_json(self._folder.engine_status(0)) or {}
        # an engine says what it does; a toolkit's losses say which training they are of
        self.phase = str(status.get("phase") or self.last.get("phase") or self.phase)
        self._total = self._total or status.get("planned_steps")
        return [
            str(e["text"]) for e in self._events.read() if e.get("kind") in ("warning", "signal")
        ]

    def line(self, width: int = 100) -> str:
        """step 76/125 ━━━━────  loss 0.412  lr 1e-05  18.2k tok/s  5.0/12 GiB  0:41 left"""
        if self.waiting:
            return field("waiting", self.waiting)[:width]
        step = int(self.last.get("step", 0))
        total = self._total
        parts = []
        if not self.last or self.phase not in ("training",):
            parts.append(self.phase)
        if self.last:
            parts.append(f"step {step}/{total}" if total else f"step {step}")
            if total:
                filled = round(24 * min(1.0, step / total))
                parts.append("━" * filled + "─" * (24 - filled))
            loss = self.last.get("loss")
            parts.append("loss not finite" if loss is None else f"loss {loss:.3f}")
            if self.last.get("learning_rate") is not None:
                parts.append(f"lr {self.last['learning_rate']:.2g}")
            rate = float(self.last.get("tokens_per_second") or 0)
            if rate:
                parts.append(f"{rate / 1000:.1f}k tok/s" if rate >= 1000 else f"{rate:.0f} tok/s")
        limit = self._plan.budget.limit_bytes
        if self.own_bytes is not None:
            parts.append(
                format_bytes(self.own_bytes) + (f" of {format_bytes(limit)}" if limit else "")
            )
        if total and self._seconds_a_step and step < total:
            parts.append(f"{format_duration(self._seconds_a_step * (total - step))} left")
        return "  ".join(parts)[:width]


def follow(
    folder: RunFolder,
    plan: PlanBase,
    supervisor: subprocess.Popen[bytes],
    out: Output,
    prefix: str = "",
) -> int:
    """Follow until the supervisor ends; its exit code, which is the run's."""
    progress = Progress(folder, plan)
    live = sys.stderr.isatty()
    last_said, asked, waiting = time.monotonic(), 0, ""
    while True:
        try:
            code = supervisor.poll()
            warnings = progress.update()
            if live:
                _clear_line()
            for text in warnings:
                out.say(f"{prefix}{field('guard', text)}")
            if code is not None:
                break
            if live:
                import shutil

                width = shutil.get_terminal_size().columns - 1
                sys.stderr.write(prefix + progress.line(width - len(prefix)))
                sys.stderr.flush()
            elif progress.waiting:
                if progress.waiting != waiting:
                    out.say(prefix + progress.line(2000))
                waiting, last_said = progress.waiting, time.monotonic()
            elif time.monotonic() - last_said >= PLAIN_SECONDS:
                last_said = time.monotonic()
                out.say(prefix + progress.line(200))
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            asked += 1
            if live:
                _clear_line()
            supervisor.send_signal(2)
            out.say(
                field(
                    "stopping",
                    "it only waits for a GPU"
                    if progress.waiting
                    else "a checkpoint is saved first; Ctrl-C again kills"
                    if asked == 1
                    else "killing",
                )
            )
    if code < 0:  # the supervisor itself was killed
        return 128 - code
    return code


def _clear_line() -> None:
    sys.stderr.write("\r\x1b[K")
