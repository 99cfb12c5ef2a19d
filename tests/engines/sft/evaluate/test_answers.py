"""What a generated text is taken for: labels, choices, JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.errors import SpecError
from runner.data.keys import normalised
from runner.engines.sft.inside.evaluate.answers import (
    INVALID,
    answer_pattern,
    canonical_json,
    choices_in,
    keys_right,
    parse_choice,
    parse_json,
    parse_label,
    require_distinct,
)

TWO = ["negative", "positive"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        ("  Positive\n", "positive"),
        ("\uff30ositive", "positive"),  # full width
        ("positive.", "positive"),
        ("negative, since the room was dirty", "negative"),
        ("the answer is positive", None),  # it does not begin with a label
        ("positively", None),  # another word
        ("positive1", None),
        ("", None),
        ("   ", None),
        ("posit", None),
        ("\u6b63\u9762", None),
    ],
)
def test_a_label_is_the_text_or_its_beginning(text: str, label: str | None) -> None:
    assert parse_label(text, TWO) == label


def test_scripts_without_spaces_need_no_end_of_word() -> None:
    assert parse_label("\u597d\u7684\u3002", ["\u597d", "\u5dee"]) == "\u597d"
    assert parse_label("\u4e0d\u597d", ["\u597d", "\u5dee"]) is None


def test_of_labels_that_begin_alike_the_longest_is_taken() -> None:
    assert parse_label("good enough for me", ["good", "good enough"]) == "good enough"
    assert parse_label("good", ["good", "good enough"]) == "good"
    assert parse_label("10 of them", ["1", "10"]) == "10"
    assert parse_label("100", ["1", "10"]) is None


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=8), max_size=5))
def test_parsing_any_text_gives_a_label_or_none(text: str, labels: list[str]) -> None:
    labels = [label for label in labels if normalised(label)]
    told = parse_label(text, labels)
    assert told is None or told in labels
    if told is not None:
        assert normalised(text).startswith(normalised(told))


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_every_label_is_read_as_itself(labels: list[str]) -> None:
    try:
        require_distinct(labels)
    except SpecError:
        return
    assert [parse_label(label, labels) for label in labels] == labels


@pytest.mark.parametrize("labels", [["Yes", "yes"], ["a  b", "a b"], ["x", " "], ["\uff21", "a"]])
def test_labels_that_no_text_could_tell_apart_are_refused(labels: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        require_distinct(labels)
    assert caught.value.problems[0].field == "data.labels"


@pytest.mark.parametrize(
    ("question", "choices"),
    [
        ("Is it?\n\nAnswer format: true/false", ["true", "false"]),
        ("Option1: x Option2: y Answer format: option1/option2 ", ["option1", "option2"]),
        ("answer format:a / b/ c.", ["a", "b", "c"]),
        ("Answer format: x/y\nno, Answer format: p/q", ["p", "q"]),
        ("Answer format: a/a/b", ["a", "b"]),
        ("no choices here", []),
        ("Answer format: \nmore", []),
    ],
)
def test_choices_stand_behind_the_answer_format(question: str, choices: list[str]) -> None:
    assert choices_in(question) == choices


FOUR = ["answer1", "answer2", "answer3", "answer10"]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("the correct answer is answer3", "answer3"),
        ("Answer2: chemical, not answer1", "answer2"),
        ("the correct answer is answer10", "answer10"),
        ("the correct answer is answer100", None),
        ("ANSWER1", "answer1"),
        ("answer", None),
        ("", None),
    ],
)
def test_the_choice_mentioned_first_counts(text: str, choice: str | None) -> None:
    assert parse_choice(text, FOUR) == choice


def test_true_is_not_found_in_untrue() -> None:
    assert parse_choice("That is untrue; so false.", ["true", "false"]) == "false"


def test_a_pattern_decides_where_it_is_given() -> None:
    pattern = answer_pattern(r"answer is (\w+)")
    assert parse_choice("answer1? The answer is ANSWER2", FOUR, pattern) == "answer2"
    assert parse_choice("The answer is answer7", FOUR, pattern) is None
    assert parse_choice("answer1", FOUR, pattern) is None
    assert parse_choice("the answer is B", [], pattern) == "b"
    assert parse_choice("B", ["A", "B"], answer_pattern("[ab]")) == "B"


def test_a_broken_pattern_is_refused_by_name() -> None:
    with pytest.raises(SpecError) as caught:
        answer_pattern("(")
    assert caught.value.problems[0].field == "evaluation.answer_pattern"


@given(st.text(max_size=80))
def test_any_text_gives_a_choice_or_none(text: str) -> None:
    assert parse_choice(text, FOUR) in {None, *FOUR}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_is_read_back_however_it_is_written(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=3, ensure_ascii=False)):
        told = parse_json(f"\n {text} ")
        assert told is not INVALID
        assert canonical_json(told) == canonical_json(value)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_the_order_of_keys_does_not_count(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)
    assert all(keys_right(value, turned).values())


@given(st.text(max_size=60))
def test_text_is_json_only_where_pythons_parser_takes_it(text: str) -> None:
    if parse_json(text) is not INVALID:
        json.loads(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "```json\n{}\n```",
        '{"a": 1} and more',
        "{'a': 1}",
        "NaN",
        '{"a": Infinity}',
        '{"a": 1, "a": 2}',
        "[" * 5000 + "]" * 5000,
        "[" * 300 + "]" * 300,
    ],
)
def test_what_is_not_json_alone_is_invalid(text: str) -> None:
    assert parse_json(text) is INVALID


def test_json_equality_is_that_of_values() -> None:
    assert canonical_json(1) == canonical_json(1.0) != canonical_json(True)
    assert canonical_json(None) != canonical_json("null")
    assert canonical_json(2.0**60) == canonical_json(math.ldexp(1, 60))
    assert keys_right({"a": 1, "b": "x", "c": None}, {"a": 1.0, "b": "y"}) == {
        "a": True,
        "b": False,
        "c": False,
    }
    assert keys_right({"a": 1}, ["a"]) == {"a": False}
    assert keys_right({"a": 1}, INVALID) == {"a": False}
