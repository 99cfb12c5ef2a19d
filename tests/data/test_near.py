"""Near duplicates of training rows among those held out: a report, quick and bounded."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from runner.data import near
from runner.data.prepared import Prepared
from runner.data.summary import near_lines
from tests.data.test_prepare import adds_up, cache, done, write

__all__ = ["cache"]
TEMPLATE = "Please read the following customer review carefully and answer yes or no: "


def sentences(count: int, seed: int, words: int = 30) -> list[str]:
    draw = random.Random(seed)  # noqa: S311 - no secret
    known = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(3000)]
    return [" ".join(draw.choices(known, k=words)) for _ in range(count)]


def report(prepared: Prepared) -> dict[str, object]:
    found = prepared.report["near_duplicates"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(autouse=True)
def library() -> None:
    pytest.importorskip("datasketch")


def test_near_duplicates_are_reported_with_both_lines(tmp_path: Path) -> None:
    texts = sentences(60, 1)
    train = write(tmp_path / "t.jsonl", *((TEMPLATE + text, "yes") for text in texts))
    # another ending, another case; and rows that have the template alone in common
    near_ones = [texts[7] + " really", texts[20].upper()]
    others = sentences(20, 2)
    held = write(tmp_path / "e.jsonl", *((TEMPLATE + text, "no") for text in [*near_ones, *others]))
    prepared = done(train, eval=held)
    found = report(prepared)
    assert found["rows"] == {"eval": 2, "test": 0}
    assert [(one["line"], one["train_line"]) for one in found["first"]] == [(1, 8), (2, 21)]  # type: ignore[attr-defined]
    assert found["looked_at"] == {"held_out": 22, "train": 60}
    (line,) = near_lines(prepared.report)
    assert "2 eval rows are near duplicates" in line
    assert "e.jsonl:1 as t.jsonl:8 (9" in line
    assert prepared.counts["train"] == 60  # nothing is taken away
    adds_up(prepared)
    assert done(train).report["near_duplicates"] is None


def test_near_duplicates_are_looked_for_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "MOST_TRAINED", 10)
    monkeypatch.setattr(near, "MOST_HELD_OUT", 5)
    train = write(tmp_path / "t.jsonl", *((text, "a") for text in sentences(35, 1)))
    held = write(tmp_path / "e.jsonl", *((text, "a") for text in sentences(9, 2)))
    assert report(done(train, eval=held))["looked_at"] == {"held_out": 5, "train": 9}


def test_it_says_where_the_library_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    train = write(tmp_path / "t.jsonl", ("a", "a"), ("b", "b"), ("c", "c"))
    prepared = done(train, split={"eval": 0.3})
    assert near_lines(prepared.report) == [
        "near duplicates were not looked for: datasketch is not installed"
    ]


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(5_000, 10), pytest.param(20_000, 20, marks=pytest.mark.soak)],  # about a quarter is taken
)
def test_thousands_of_rows_take_seconds(rows: int, seconds: float, tmp_path: Path) -> None:
    """CPU-seconds: each row against each other would take ten times as many of 5,000."""
    texts = sentences(rows, 1)
    prepared = done(write(tmp_path / "t.jsonl", *((t, "a") for t in texts)), split={"eval": 0.1})
    began = time.process_time()
    found = near.near_duplicates(prepared, dict(prepared.counts), lambda _: None)
    assert found is not None
    assert found["rows"] == {"eval": 0, "test": 0}
    assert time.process_time() - began < seconds
