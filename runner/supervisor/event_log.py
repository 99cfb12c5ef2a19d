"""Write events.jsonl, memory.jsonl and the peak while a run runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from runner.common import durable, terminal
from runner.machine.readings import Sample
from runner.runs.folder import RunFolder

RECORD_SECONDS = 1.0  # between two lines of memory.jsonl, where nothing happens
ACCOUNTING = "accounting"
HIGH_WATER = "high_water"
ACCOUNTING_BOUND = "accounting_upper_bound"


class EventLog:
    """events.jsonl and memory.jsonl; a full disk loses lines, counted, and never the guard."""

    def __init__(self, folder: RunFolder) -> None:
        self.dropped = 0
        self.warnings: list[str] = []
        self._last_seconds = -RECORD_SECONDS
        moved_aside: list[str] = []
        seen = replace(folder, told=moved_aside.append)
        self._events = seen.open_lines(folder.events)
        self._memory = seen.open_lines(folder.memory)
        for text in moved_aside:
            self.warn(text)

    def warn(self, text: str) -> None:
        """An event of the kind that the outcome repeats."""
        self.event("warning", text)

    def event(self, kind: str, text: str, **more: object) -> None:
        """One thing that happened, also said in the supervisor's log."""
        terminal.say(f"{time.strftime('%H:%M:%S')} {kind}: {text}")
        if kind == "warning":
            self.warnings.append(text)
        self._write(
            self._events,
            {
                "schema_version": 1,
                "time_unix_seconds": round(time.time(), 3),
                "kind": kind,
                "text": text,
                **more,
            },
        )

    def sample(self, sample: Sample, *, notable: bool) -> None:
        """Samples come up to ten times a second; a line is written each second and when notable."""
        if notable or sample.monotonic_seconds - self._last_seconds >= RECORD_SECONDS:
            self._last_seconds = sample.monotonic_seconds
            self._write(self._memory, sample.to_record())

    def _write(self, writer: durable.JsonlWriter, record: Mapping[str, object]) -> None:
        try:
            writer.write(record)
        except OSError:
            self.dropped += 1


class Peak:
    """The largest figure that was the run's own, its source, and the largest of every source.

    A spike of 50 ms is seen by one source and missed by another: none of them alone is the peak.
    """

    def __init__(self) -> None:
        self.value: int | None = None
        self.source: str | None = None
        self.by_source: dict[str, int] = {}
        self.steps: dict[str, int] = {}
        """The step at which a source that knows steps had its largest."""

    def see(self, sample: Sample) -> bool:
        """Whether this sample is a new peak by more than one percent."""
        own = sample.own_bytes
        if own is None or not sample.attribution.enforceable:
            return False
        told = sample.attribution.value
        is_new = self.offer(own, f"{told}:{sample.measure or 'trainer'}")
        if sample.high_water_bytes is not None:
            is_new = self.offer(sample.high_water_bytes, f"{told}:{HIGH_WATER}") or is_new
        return is_new

    def offer(self, value: int, source: str, step: int | None = None) -> bool:
        """Take another source's figure if it is larger."""
        if value > self.by_source.get(source, 0):
            self.by_source[source] = value
            if step is not None:
                self.steps[source] = step
        before = self.value or 0
        if value > before:
            self.value, self.source = value, source
        return value > before * 1.01

    def account(self, maxima: Sequence[int]) -> None:
        """What the driver kept of one GPU: the maximum of each of the run's processes, in bytes.

        They did not come at the same time. The largest is a figure that the GPU did see; their sum
        is only a bound, kept beside the others and never called the peak.
        """
        if maxima:
            self.offer(max(maxima), ACCOUNTING)
        if len(maxima) > 1:
            bound = max(sum(maxima), self.by_source.get(ACCOUNTING_BOUND, 0))
            self.by_source[ACCOUNTING_BOUND] = bound
