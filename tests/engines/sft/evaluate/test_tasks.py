"""Tasks refuse rows they can't judge, and judge the others."""

from __future__ import annotations

import pytest

from runner.common.errors import SpecError
from runner.engines.sft.inside.evaluate.tasks import (
    ExactMatch,
    Row,
    classification_for,
    json_for,
    multiple_choice_for,
)

CHOICES = "Which?\n\nAnswer format: answer1/answer2"


def row(expected: str, question: str = "q", choice: str | None = None, line: int = 1) -> Row:
    return Row(0, "rows.jsonl", line, [{"role": "user", "content": question}], expected, choice)


def test_labels_come_from_the_job_then_from_the_rows() -> None:
    rows = [row("good"), row("Bad ")]
    stated = classification_for(rows, {"0": "bad", "1": "good"}, {"good": 7, "bad": 3})
    assert stated.labels == ["bad", "good"]
    assert stated.majority_of == {"good": 7, "bad": 3}
    assert stated.expected(rows[1]) == "bad"
    assert stated.judge(rows[1], "bad!").correct
    found = classification_for([row("x"), row("y")], None, {"z": 2})
    assert found.labels == ["x", "y", "z"]
    alone = classification_for([row("x"), row("y"), row("y")], None, None)
    assert alone.majority_of == {"x": 1, "y": 2}
    assert "evaluated rows" in alone.majority_from


def test_an_answer_that_is_no_label_is_unparseable_and_wrong() -> None:
    task = classification_for([row("a"), row("b")], None, None)
    judged = task.judge(row("a"), "hmm")
    assert judged.parsed is None and not judged.correct


def test_a_row_whose_answer_is_no_label_is_refused_by_line() -> None:
    with pytest.raises(SpecError) as caught:
        classification_for([row("a"), row("neutral", line=7)], {"0": "a", "1": "b"}, None)
    assert caught.value.problems[0].where == "rows.jsonl:7"


def test_exact_match_has_two_measures() -> None:
    judged = ExactMatch().judge(row("Grey  Van"), "grey van\n")
    assert judged.correct and not judged.detail["correct_raw"]
    assert ExactMatch().judge(row("Grey Van"), " Grey Van").detail["correct_raw"]


def test_json_answers_are_judged_by_value_and_by_key() -> None:
    task = json_for([row('{"a": 1, "b": "x"}')])
    same = task.judge(row('{"a": 1, "b": "x"}'), '{"b":"x","a":1.0}')
    assert same.correct and same.detail["keys"] == {"a": True, "b": True}
    half = task.judge(row('{"a": 1, "b": "x"}'), '{"a": 1, "c": 2}')
    assert not half.correct and half.detail["keys"] == {"a": True, "b": False}
    assert half.detail["extra_keys"] == 1
    broken = task.judge(row('{"a": 1}'), '{"a": 1')
    assert broken.parsed is None and broken.detail["valid_json"] is False
    with pytest.raises(SpecError) as caught:
        json_for([row("{}"), row("not json", line=4)])
    assert caught.value.problems[0].where == "rows.jsonl:4"


def test_json_figures_add_up() -> None:
    rows = [row('{"a": 1, "b": 2}'), row('{"a": 3}')]
    task = json_for(rows)
    told = [task.judge(rows[0], '{"a": 1, "b": 5}'), task.judge(rows[1], "no")]
    record = task.figures(rows, told, None)
    assert record["valid_json"]["model"]["value"] == 0.5
    assert record["exact_match"]["model"]["value"] == 0
    assert record["keys"]["a"]["model"]["value"] == 0.5
    assert record["keys"]["b"]["model"]["value"] == 0
    assert record["key_accuracy"]["model"]["value"] == pytest.approx(1 / 3)


def test_a_choice_is_the_rows_answer_key_or_what_its_answer_mentions() -> None:
    rows = [row("the correct answer is answer2", CHOICES), row("because", CHOICES, "answer1")]
    task = multiple_choice_for(rows, None)
    assert [task.expected(each) for each in rows] == ["answer2", "answer1"]
    assert task.judge(rows[0], "I say answer2, not answer1").correct
    record = task.figures(rows, [task.judge(each, "answer2") for each in rows], None)
    assert record["chance"] == 0.5
    assert record["accuracy"]["model"]["value"] == 0.5


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row("answer1", "no choices", line=9), "names no choices"),
        (row("answer3", CHOICES, line=9), "none of its choices"),
    ],
)
def test_rows_without_a_right_choice_are_refused_by_line(bad: Row, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        multiple_choice_for([row("answer1", CHOICES), bad], None)
    found = caught.value.problems[0]
    assert found.where == "rows.jsonl:9" and problem in found.problem


def test_a_pattern_stands_in_for_choices() -> None:
    rows = [row("The answer is B.", "Pick one")]
    task = multiple_choice_for(rows, r"answer is (\w)")
    assert task.judge(rows[0], "the answer is b").correct
    assert task.figures(rows, [task.judge(rows[0], "so the answer is C")], None)["chance"] is None
