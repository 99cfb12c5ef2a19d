"""Every reader of metrics.jsonl passes over what a script of the user's own may write there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runner.report.memory import peak_step
from runner.runs.folder import RunFolder
from runner.runs.metrics import is_loss_line, loss_lines, time_of

ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
LINES = st.dictionaries(st.sampled_from(["step", "loss", "time_unix_seconds"]), ANYTHING)


@given(LINES)
def test_what_counts_can_be_counted_with(line: dict[str, Any]) -> None:
    if is_loss_line(line):
        assert line["step"] + 0 == line["step"]
        assert line["loss"] is None or line["loss"] + 0 == line["loss"]
    when = time_of(line)
    assert when is None or when == line["time_unix_seconds"]


def test_a_peak_is_placed_among_the_lines_that_say_a_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.memory.write_text(json.dumps({"own_bytes": 5, "time_unix_seconds": 15.0}) + "\n")
    lines: list[dict[str, Any]] = [
        {"loss": 1.0, "time_unix_seconds": 20.0},
        {"loss": 1.0, "step": 1, "time_unix_seconds": "late"},
        {"loss": "high", "step": 2, "time_unix_seconds": 20.0},
        {"loss": 0.5, "step": 3, "time_unix_seconds": 21.0},
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["step"] for line in loss_lines(folder.metrics)] == [1, 3]
    assert peak_step(folder, {"peak_source": "x"}) == (3, "x")
