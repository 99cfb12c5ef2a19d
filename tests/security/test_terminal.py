"""Text made fit for a terminal: what is left obeys nobody, and JSON keeps its values."""

from __future__ import annotations

import io
import json
import math
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.cli.logs import LINE_LETTERS, Lines
from runner.common import terminal
from tests.support.soaking import examples

UNFIT = [
    *(chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    *("\ud800", "\udc80", "\udfff"),
]
texts = st.text(st.one_of(st.characters(), st.sampled_from(UNFIT), st.sampled_from("\n\t\\x1b[")))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(texts, inner)),
    max_leaves=10,
)
soaked = settings(max_examples=examples(200, 10_000), deadline=None)


def fit(text: str) -> bool:
    """Nothing in it that a terminal obeys but line feed and tab."""
    controls = (one for one in text if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp"))
    return not any(one in UNFIT for one in text) and all(one in "\n\t" for one in controls)


@soaked
@given(texts)
def test_what_is_cleaned_obeys_nobody_and_stays_so(text: str) -> None:
    once = terminal.clean(text)
    assert fit(once) and terminal.clean(once) == once
    once.encode()  # no surrogate is left
    line = terminal.clean_line(text)
    assert fit(line) and not set(line) & set("\n\t") and terminal.clean_line(line) == line
    if fit(text):
        assert once == text


def test_the_form_is_pythons_own() -> None:
    assert terminal.clean("a\x1b]52;c;eA==\x07\x9b2J\r\x7f") == r"a\x1b]52;c;eA==\x07\x9b2J\r\x7f"
    assert terminal.clean("\u202e\ud800\u2028") == r"\u202e\ud800\u2028"
    assert terminal.clean_line("a\tb\nc") == r"a\tb\nc"
    assert terminal.clean("Grüße, 世界 👩\u200d🔬\n\tx") == "Grüße, 世界 👩\u200d🔬\n\tx"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


@soaked
@given(values, st.sampled_from([None, 2]))
def test_json_for_a_terminal_is_the_same_value(value: Any, indent: int | None) -> None:
    text = terminal.json_text(value, indent=indent)
    assert fit(text)
    assert json.loads(text) == _finite(value)
    assert indent or "\n" not in text


def test_our_own_colours_are_printed_and_nobody_elses(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.put(f"{terminal.ink('32')}fine{terminal.ink('0')} \x1b[31m \x00ffffffffffffffff;32m")
    shown = r"\x1b[31m \x00ffffffffffffffff;32m"
    assert capsys.readouterr().out == f"\x1b[32mfine\x1b[0m {shown}\n"


def test_a_terminal_of_another_encoding_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    under = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(under, encoding="ascii"))
    terminal.put("━ ü")
    assert under.getvalue() == b"\\u2501 \\xfc\n"


def test_what_libraries_print_is_cleaned_in_the_engines_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    terminal.guard_streams()
    terminal.guard_streams()
    print("row \x1b]52;c;eA==\x07 \r over")
    print("\r 50 %", end="")  # a bar of tqdm
    terminal.draw_line("ours \x1b[2J", sys.stdout)
    assert out.getvalue() == ("row \\x1b]52;c;eA==\\x07 \\r over\n\r 50 %\r\x1b[Kours \\x1b[2J")


# -- logs


def shown(content: bytes, pieces: int = 1) -> list[str]:
    lines = Lines(drawn=True)
    size = max(1, -(-len(content) // pieces))
    found = []
    for begin in range(0, len(content), size):
        found += lines.take(content[begin : begin + size])
    return [terminal.clean(line) for line in (*found, lines.unfinished)]


LOG = b"one\r\n 10 %\r 20 %\r 30 %\n\x1b[31mred\x1b[0m\n\x1b]52;c;eA==\x07\n 40 %\r 50 %\r"


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 7, len(LOG)])
def test_a_bar_in_a_log_is_what_a_terminal_showed_last(pieces: int) -> None:
    assert shown(LOG, pieces) == ["one", " 30 %", "red", r"\x1b]52;c;eA==\x07", " 50 %"]


@settings(max_examples=examples(200, 10_000), deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_log_in_pieces_is_the_log(content: bytes, pieces: int) -> None:
    assert shown(content, pieces) == shown(content)
    assert all(map(fit, shown(content, pieces)))


def test_a_line_without_end_takes_no_memory() -> None:
    lines = Lines(drawn=True)
    for _ in range(100):
        assert lines.take(b"\0" * 100_000) == []
    assert len(lines.unfinished) < LINE_LETTERS + 100
    (line,) = lines.take(b"\n")
    assert line.endswith(f"… {10_000_000 - LINE_LETTERS:,} characters more")
    for _ in range(100):
        lines.take(b"x" * 1000 + b"\r")
    assert lines.unfinished == "x" * 1000
