"""The line that says how far an evaluation is."""

from __future__ import annotations

import io

from runner.engines.sft.inside.evaluate.progress import SECONDS_BETWEEN_LINES, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_goes_by_cost_not_by_rows() -> None:
    clock = Clock()
    progress = Progress(10, cost=100.0, stream=io.StringIO(), clock=clock)
    clock.now = 8.0
    progress.add(2, 80.0)  # the longest rows come first
    assert progress.line() == "evaluating 2 of 10 rows, 0.2 rows/s, 0:02 left"


def test_a_log_gets_a_line_now_and_then_and_a_terminal_one_that_moves() -> None:
    clock, log, terminal = Clock(), io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    seen = [Progress(4, 4.0, stream, clock) for stream in (log, terminal)]
    for _ in range(4):
        clock.now += SECONDS_BETWEEN_LINES / 2
        for progress in seen:
            progress.add(1, 1.0)
    for progress in seen:
        progress.end()
    assert log.getvalue().count("\n") == 2 and "\r" not in log.getvalue()
    assert terminal.getvalue().count("\r") == 4 and terminal.getvalue().count("\n") == 1
