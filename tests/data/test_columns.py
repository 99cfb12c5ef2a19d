"""Columns of other names: one error that names the remedy, and data.columns that is it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from runner.common.errors import Problem, SpecError
from runner.data.columns import renamed
from runner.jobs.data import DataSettings
from tests.data.test_prepare import cache, done, problem_of, prompts, write

__all__ = ["cache"]
ANSWERS = {"0": "bad", "1": "good"}


def table(path: Path, head: str) -> Path:
    path.write_text(f"{head}\nA fine film,1\nA dull film,0\nSo so,0\n", encoding="utf-8")
    return path


def problems_of(train: Path, **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        done(train, **options)
    return caught.value.problems


@pytest.mark.parametrize("stated", ["text_label", "auto"])
@pytest.mark.parametrize(
    ("head", "remedy"),
    [
        ("review,label", "data.columns: {text: review}"),
        ("Sentence,sentiment", "data.columns: {text: Sentence, label: sentiment}"),
        ("txet,lable", "data.columns: {text: txet, label: lable}"),
    ],
)
def test_a_column_of_another_name_is_told_once_with_the_remedy(
    tmp_path: Path, stated: str, head: str, remedy: str
) -> None:
    path = table(tmp_path / "r.csv", head)
    (problem,) = problems_of(path, labels=ANSWERS, format=stated)
    assert str(path) in problem.where
    assert head.replace(",", ", ") in str(problem.value)
    assert remedy in str(problem.nearest)
    columns = dict(pair.split(": ") for pair in remedy[len("data.columns: {") : -1].split(", "))
    prepared = done(path, labels=ANSWERS, format=stated, columns=columns)
    assert prompts(prepared, "train") == ["A fine film", "A dull film", "So so"]
    assert prepared.report["labels"]["0"]["train"] == 2


def test_every_source_and_format_has_its_columns_named(tmp_path: Path) -> None:
    rows = [{"question": f"q {n}", "response": f"a {n}", "text": "unused"} for n in range(4)]
    train = write(tmp_path / "t.jsonl", *rows)
    held = tmp_path / "e.json"
    held.write_text(json.dumps([{**row, "question": f"e {n}"} for n, row in enumerate(rows)]))
    columns = {"instruction": "question", "output": "response"}
    prepared = done(train, eval=held, columns=columns)
    assert prepared.report["sources"][1]["format"] == "alpaca"
    assert prompts(prepared, "eval") == ["e 0", "e 1", "e 2", "e 3"]
    chats = [{"chat": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    chat = done(write(tmp_path / "c.jsonl", *chats), columns={"messages": "chat"})
    assert prompts(chat, "train") == ["q"]


def test_names_that_cross_are_exchanged_and_doubt_is_refused() -> None:
    rows = [(1, {"text": "1", "label": "a", "id": 7})]
    crossed = list(renamed(rows, {"text": "label", "label": "text"}, "f"))
    assert crossed == [(1, {"id": 7, "text": "a", "label": "1"})]
    for columns, words in (
        ({"text": "id"}, "has 'id' and 'text' too"),
        ({"output": "lable"}, "has no 'lable'"),
    ):
        with pytest.raises(SpecError) as caught:
            list(renamed(rows, columns, "f"))
        (problem,) = caught.value.problems
        assert problem.where == "f:1"
        assert words in problem.problem
    assert problem.nearest == "label"
    # a file with our own names needs no renaming
    assert list(renamed([(1, {"text": "a"})], {"text": "review"}, "f")) == [(1, {"text": "a"})]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(
    "label", ["7" * 5_000, "NaN", "[" * 50_000 + "]" * 50_000, '{"a": [1]}', '"\\ud83d"', "null"]
)
def test_a_used_value_that_is_none_is_an_error_with_file_and_line(
    tmp_path: Path, kind: str, label: str
) -> None:
    lines = ['{"text": "a", "label": 1}', f'{{"text": "b", "label": {label}}}']
    path = tmp_path / f"t.{kind}"
    path.write_text("\n".join(lines) if kind == "jsonl" else "[" + ",".join(lines) + "]")
    problem = problem_of(path, labels=ANSWERS)
    assert (problem.where, problem.field) == (f"{path}:2", "data.train -> label")
    unused = [line.replace("label", "note") for line in lines]
    rows = [line[:-1] + ', "instruction": "i", "output": "o"}' for line in unused]
    rows = [row.replace('"text"', f'"text{n}"') for n, row in enumerate(rows)]
    path.write_text("\n".join(rows) if kind == "jsonl" else "[" + ",".join(rows) + "]")
    assert done(path, clean={"duplicates": "keep"}).counts["train"] == 2


def test_a_stratum_that_is_no_text_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"instruction": f"q {n}", "output": "a", "kind": f"{n % 2}"} for n in range(6)]
    text = "\n".join(json.dumps(row) for row in rows)
    path.write_text(text.replace('"kind": "1"', '"kind": "\\ud83d"', 1))
    problem = problem_of(path, split={"eval": 0.3, "stratify": "kind"})
    assert (problem.where, problem.field) == (f"{path}:2", "data.split.stratify")


def test_a_setting_of_tables_without_a_table_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"no rows are a \.csv or \.tsv file"):
        DataSettings.model_validate({"train": "a.jsonl", "table": {"quote": "none"}})
    DataSettings.model_validate({"train": "a.TSV", "table": {"quote": "none"}})
    with pytest.raises(ValidationError, match="gives one column two names"):
        DataSettings.model_validate({"train": "a.csv", "columns": {"text": "a", "label": "a"}})
