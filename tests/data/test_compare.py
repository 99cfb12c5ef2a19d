"""When rows are the same: white space apart, and by what the job says besides."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.compare import WORDS, comparable, match_keys, match_keys_by_rules, rule_words

RULES = [
    rule for size in range(len(WORDS) + 1) for rule in itertools.combinations(sorted(WORDS), size)
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" a \t\n b\u3000c ", "a b c"),
        ("房间 很 好 ， iPod 也好", "房间很好，iPod也好"),
        ("Hello , world", "Hello, world"),
        ("a\u200bb\ufeff", "a b"),
        ("jet stream", "jetstream"),
    ],
)
def test_white_space_does_not_count(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)


@pytest.mark.parametrize(
    ("one", "other", "by"),
    [
        ("x²", "x2", "width"),
        ("ＡＢ", "AB", "width"),
        ("①", "1", "width"),
        ("aB", "Ab", "case"),
        ("ß", "ss", "case"),
        ("Yes!", "Yes", "punctuation"),
        ("你好。", "你好", "punctuation"),
        ("sort 3 14", "sort 31 4", None),
        ("3 -4", "3-4", None),
        ("é", "e", None),
    ],
)
def test_what_else_is_not_equal_counts_unless_the_job_says_otherwise(
    one: str, other: str, by: str | None
) -> None:
    for rule in RULES:
        assert (comparable(one, rule) == comparable(other, rule)) == (by in rule), rule


@given(st.text(max_size=30), st.sampled_from(RULES))
def test_comparing_twice_changes_nothing(text: str, rule: tuple[str, ...]) -> None:
    once = comparable(text, rule)
    assert comparable(once, rule) == once
    if not rule:
        assert once == text


@given(st.lists(st.text(max_size=6), min_size=1, max_size=5), st.lists(st.sampled_from(" \t\n　")))
def test_white_space_between_words_is_never_told(words: list[str], spaces: list[str]) -> None:
    words = ["".join(word.split()) for word in words if not any(map(str.isdigit, word))]
    assert comparable("".join(words)) == comparable(f" {''.join(spaces)}".join(words))


def chat(*contents: str) -> list[dict[str, str]]:
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def test_prompt_and_row() -> None:
    prompt, row = match_keys(chat("q", "a"))
    assert match_keys(chat(" q", "b"))[0] == prompt
    assert match_keys(chat("q ", "a\n")) == (prompt, row)
    assert match_keys(chat("Q", "a"))[0] != prompt
    assert match_keys(chat("Q", "A"), ignore=("case",)) == match_keys(
        chat("q", "a"), ignore=("case",)
    )
    assert match_keys(chat("q", "a"), ["i.png 3"])[0] != prompt
    assert match_keys(chat("q", "a"), [], [[{"name": "tool"}]])[0] != prompt
    called = [*chat("q"), {"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}]
    assert match_keys(called)[0] == prompt
    assert match_keys(called)[1] != row
    untrained = [*chat("q"), {"role": "assistant", "content": "a", "trained": False}]
    assert match_keys(untrained)[0] == prompt
    assert match_keys(untrained)[1] != row


@given(st.lists(st.text(max_size=4), min_size=2, max_size=4), st.integers(0, 8))
def test_no_text_can_pass_for_another_turn(texts: list[str], cut: int) -> None:
    """Turns are parted by what no text can hold."""
    joined = chat("\nassistant\n".join(texts), "z")
    assert match_keys(joined, ignore=()) != match_keys(chat(*texts, "z"), ignore=())


def test_rules_are_said() -> None:
    assert rule_words([]) == "to the letter"
    assert rule_words(["white_space"]) == "white space apart"
    assert rule_words(["case", "white_space"]) == "white space and case apart"


TEXTS = st.text(
    st.one_of(st.sampled_from(" 09.+-ab\n\té½²٣ﬁ\u3000\u200b"), st.characters()), max_size=40
)


@settings(deadline=None)
@given(TEXTS)
def test_of_white_space_only_what_parts_two_numbers_counts(text: str) -> None:
    words = text.translate(dict.fromkeys(map(ord, "\u180e\u200b\u2060\ufeff"))).split()
    told = re.sub(r"(?<!\d) | (?![+\-.]?\d)", "", " ".join(words))
    assert comparable(text) == told


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(("system", "user", "assistant", "tool")), "content": TEXTS},
            optional={"trained": st.booleans(), "reasoning_content": TEXTS},
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(TEXTS, max_size=2),
    st.lists(st.sampled_from(RULES), min_size=1, max_size=3),
)
def test_keys_by_several_rules_are_those_by_each(
    messages: list[dict[str, Any]], images: list[str], rules: list[tuple[str, ...]]
) -> None:
    tools = [{"name": "look_up"}]
    assert match_keys_by_rules(messages, images, (tools,), rules) == [
        match_keys(messages, images, (tools,), rule) for rule in rules
    ]


EARLIER = [
    "9b294acb93cf3646522539117a66f437",
    "e19a32a3e4e91010a17124b29d628d6d",
    "d78792e82aa0d13cb7373867e893446d",
    "ac254bb5a928beaad81de9749e2b4694",
]


def test_the_keys_of_a_row_are_those_of_earlier_versions() -> None:
    """Runs keep them (row-hashes), so that a later evaluation knows what was trained on."""
    messages = [
        {"role": "user", "content": "Was ist 3 14 + 5 ?"},
        {"role": "assistant", "content": "Ｆünf  mehr", "reasoning_content": "a b"},
    ]
    exact, folded = match_keys_by_rules(
        messages, ["a.png 5"], (None,), [("white_space",), ("white_space", "case", "width")]
    )
    assert [key.hex() for key in (*exact, *folded)] == EARLIER
