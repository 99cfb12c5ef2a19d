"""JSON rows: a key twice is refused; what a row holds besides may be anything."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.errors import Problem, SpecError
from runner.data import json_rows
from runner.data.read import read_rows
from runner.data.strict_json import MOST_LEVELS, TOO_DEEP, DuplicateKeyError, cut_deep, loads

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just('\\"[{'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def problem_of(path: Path) -> Problem:
    with pytest.raises(SpecError) as caught:
        list(read_rows(path))
    (problem,) = caught.value.problems
    return problem


@given(JSON)
def test_any_value_is_read_as_json_reads_it(value: Any) -> None:
    text = json.dumps(value)
    assert loads(text) == value
    if isinstance(value, list | dict):
        assert cut_deep(text + ' "') == (text, len(text))
        assert cut_deep(text[:-1]) is None


@given(st.lists(st.sampled_from("[{"), max_size=4), st.text(max_size=4))
def test_a_key_twice_is_refused_however_deep(around: list[str], key: str) -> None:
    text = f"{{{json.dumps(key)}: 1, {json.dumps(key)}: 1}}"
    for mark in around:
        text = f"[{text}]" if mark == "[" else f'{{"a": {text}}}'
    with pytest.raises(DuplicateKeyError):
        loads(text)


@settings(deadline=None)
@given(st.integers(1, 3 * MOST_LEVELS), st.integers(1, 12_000))
def test_depth_and_digits_have_no_end(levels: int, digits: int) -> None:
    found = loads(f'{{"a": {"[" * levels}{"]" * levels}, "b": 1, "c": {"7" * digits}}}')
    assert found["b"] == 1
    assert found["c"] == Decimal("7" * digits)
    inner, depth = found["a"], 1
    while inner and inner != [TOO_DEEP]:
        (inner,), depth = inner, depth + 1
    assert depth == min(levels, MOST_LEVELS - 1)


ODD = {
    "digits": "7" * 5_000,
    "constants": "[NaN, Infinity, -Infinity]",
    "deep": "[" * 50_000 + "]" * 50_000,
    "surrogate": '"\\ud83d"',
    "nested": '{"x": [{"y": null}, 1.5e400, {}]}',
}


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("odd", ODD)
def test_an_unused_key_may_hold_anything(tmp_path: Path, kind: str, odd: str) -> None:
    lines = [f'{{"text": "a", "label": "b", "more": {ODD[odd]}}}', '{"text": "c", "label": "d"}']
    text = "\n".join(lines) if kind == "jsonl" else "[" + ",\n".join(lines) + "]"
    path = tmp_path / f"rows.{kind}"
    path.write_text(text)
    assert [row["text"] for _, row in read_rows(path)] == ["a", "c"]


def test_deep_rows_are_read_through_a_small_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "_BUFFER_CHARACTERS", 64)
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"a": {"[" * 5000}"]"{"]" * 5000}}}, {{"a": 2}}]')
    assert [number for number, _ in read_rows(path)] == [1, 2]
    path.write_text(f'[{{"a": {"[" * 5000}{"]" * 4999}}}, {{"a": 2}}]')
    assert "line 1 is not JSON" in problem_of(path).problem


def test_a_key_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": {"c": 1, "d": 2, "c": 3}}\n')
    problem = problem_of(path)
    assert problem.where == f"{path}:2"
    assert problem.problem == "line 2 holds the key 'c' twice in one object"
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1},\n {"messages": [],\n"messages": []}]')
    problem = problem_of(path)
    assert problem.where == f"{path}:2"
    assert "'messages' twice" in problem.problem


def test_parquet_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["text", "text"]), path)
    assert "'text' is there 2 times" in problem_of(path).problem
    odd = pyarrow.array([2**62, 0], pyarrow.timestamp("ms"))  # beyond the year 9999
    bad = pyarrow.array([b"\xff", b"ok"]).cast(pyarrow.string(), safe=False)
    table = pyarrow.table({"text": ["a", "b"], "when": odd, "broken": bad})
    parquet.write_table(table, path)
    found = [row for _, row in read_rows(path)]
    assert [row["text"] for row in found] == ["a", "b"]
    assert found[1]["broken"] == "ok"
    assert not isinstance(found[0]["broken"], str)
