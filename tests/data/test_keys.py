from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.keys import KEY_BYTES, draw_numbers, normalised, row_keys
from runner.data.messages import Message
from tests.support.command import REPOSITORY


def chat(*contents: str) -> list[Message]:
    return [
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＡＢＣ１２", "abc12"),
        ("Straße", "STRASSE"),
        ("  a \t\n b\u3000c ", "a b c"),
        ("ﬁne", "FINE"),
        ("カﾞ", "ガ"),
        ("e\u0301", "É"),
    ],
)
def test_width_case_and_white_space_do_not_count(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalised(text)
    assert "\n" not in once
    assert once == once.strip()
    assert normalised(once) == once


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_the_short_way_for_ascii_is_the_long_way(text: str) -> None:
    assert normalised(text + "é") == normalised(text + "é".upper())
    assert normalised(text + " é") == (normalised(text) + " é").lstrip()


def test_the_prompt_is_all_before_the_last_answer() -> None:
    prompt, row = row_keys(chat("q", "a"))
    assert len(prompt) == len(row) == KEY_BYTES
    assert row_keys(chat(" Q", "b")) == (prompt, row_keys(chat("q", "b"))[1])
    assert row_keys(chat("Ｑ", "A ")) == (prompt, row)
    assert row_keys(chat("q", "x", "q", "a"))[0] != row_keys(chat("q", "y", "q", "a"))[0]
    assert row_keys(chat("q", "a"), ["a.jpg 3"])[0] != prompt
    assert row_keys(chat("q", "a", "more"))[0] == prompt


def test_no_text_can_pass_for_another_turn() -> None:
    assert row_keys(chat("a\nassistant\nb", "c")) != row_keys(chat("a", "b", "c"))
    assert row_keys(chat("image a", "c")) != row_keys(chat("", "c"), ["a"])


@settings(deadline=None)  # numpy is imported by the first
@given(st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=50), st.integers(0))
def test_a_draw_is_by_key_and_seed(keys: list[bytes], seed: int) -> None:
    drawn = draw_numbers(keys, seed).tolist()
    assert draw_numbers(keys[::-1], seed).tolist() == drawn[::-1]


def test_seeds_draw_in_other_orders_that_look_random() -> None:
    keys = [bytes([n % 256, n // 256] + [0] * 14) for n in range(4096)]
    orders = {tuple(draw_numbers(keys, seed).argsort().tolist()) for seed in range(20)}
    assert len(orders) == 20
    for seed in range(20):  # the first tenth holds about a tenth of any half
        first = draw_numbers(keys, seed).argsort()[:410]
        assert 150 < sum(int(place) < 2048 for place in first) < 260


def test_hash_randomization_changes_nothing() -> None:
    code = (
        "from runner.data.keys import row_keys, draw_numbers\n"
        "k = row_keys([{'role': 'user', 'content': '你'}, {'role': 'assistant', 'content': 'a'}])\n"
        "print(k, draw_numbers(k, 42).tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
