"""A job's named format against what its rows look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.engine.data.formats import FormatOptions
from runner.engine.rows import _convert
from runner.errors import SpecError
from runner.job import DataSettings
from runner.plan import PlannedData
from runner.sources import file_sha256


class PlanOfRows:
    """As much of a plan as reading rows looks at."""

    def __init__(self, **data: Any) -> None:
        self.data = DataSettings(train="rows.jsonl", **data)


def convert(path: Path, **data: Any) -> Any:
    source = PlannedData(kind="file", path=str(path), sha256=file_sha256(path))
    return _convert(PlanOfRows(**data), source, "data.train", FormatOptions())  # type: ignore[arg-type]


@pytest.fixture
def both(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    row = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "instruction": "a",
        "output": "c",
    }
    path.write_text(json.dumps(row) + "\n")
    return path


def test_rows_of_two_formats_are_refused_until_the_job_says_which(both: Path) -> None:
    with pytest.raises(SpecError, match="more than one format fits"):
        convert(both)
    for name, answer in (("messages", "b"), ("alpaca", "c")):
        _, detection, converted = convert(both, format=name)
        assert (detection.format, detection.because) == (name, "the job says so")
        assert converted.rows[0][1][-1]["content"] == answer


def test_a_named_format_that_the_rows_do_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(SpecError, match="the rows are alpaca"):
        convert(path, format="messages")


def test_rows_that_changed_since_the_plan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n')
    source = PlannedData(kind="file", path=str(path), sha256="0" * 64)
    with pytest.raises(Exception, match="was changed since the plan was made"):
        _convert(PlanOfRows(), source, "data.train", FormatOptions())  # type: ignore[arg-type]
