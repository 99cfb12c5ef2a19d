"""From a generated text to the answer it gives: a label, a choice, a JSON value. Pure.

Imports the standard library, runner.common.errors and the data's own way to compare texts
(`normalised`: width, case and white space aside). A text that gives no answer is None, which
callers count as wrong and name, never leave out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from runner.common.errors import Problem, SpecError
from runner.data.keys import normalised

# "Answer format: answer1/answer2/answer3", as the commonsense sets write it; the last one counts.
_CHOICES = re.compile(r"answer\s+format\s*[:：][^\S\n]*([^\n]+)", re.IGNORECASE)

MAX_JSON_DEPTH = 200
"""Levels of nesting; no parser has to take more (RFC 8259, section 9), and ours would run out."""
INVALID = object()
"""What `parse_json` gives for a text that is not JSON: None would be JSON's own null."""


def require_distinct(labels: Sequence[str]) -> None:
    """Refuse (SpecError) labels that are empty, or alike once normalised: no text could tell."""
    seen: dict[str, str] = {}
    for label in labels:
        key = normalised(label)
        problem = None
        if not key:
            problem = "is an empty answer"
        elif key in seen:
            problem = f"can't be told from {seen[key]!r}: case, width and white space are ignored"
        if problem:
            expected = "answers that differ"
            raise SpecError([Problem("the job", "data.labels", problem, repr(label), expected)])
        seen[key] = label


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that `text` is, or else begins with; None where it does neither.

    Of labels that are the beginning of one another the longest is taken. A label that ends in a
    letter or digit has to end where the text's word ends ("1" does not begin "10"); scripts
    without spaces between words (Chinese, Japanese, Korean, Thai) are exempt, so 好 begins 好的.
    """
    told = normalised(text)
    by_key = _by_length(tuple(labels))
    for key, label in by_key:
        if told == key:
            return label
    for key, label in by_key:
        if told.startswith(key) and _ends_a_word(told, len(key)):
            return label
    return None


def choices_in(text: str) -> list[str]:
    """The choices that a question names: those behind its last "Answer format:", parted by "/"."""
    found = _CHOICES.findall(text)
    if not found:
        return []
    parts = [part.strip().rstrip(".。").strip() for part in found[-1].split("/")]
    choices = [part for part in dict.fromkeys(parts) if part]
    return choices if len(choices) > 1 else []


def parse_choice(
    text: str, choices: Sequence[str], pattern: re.Pattern[str] | None = None
) -> str | None:
    """The choice that `text` mentions first, as whole words; None where it mentions none.

    With `pattern` it is the first match's group 1 (the match, where the pattern has no group), and
    has to be one of `choices` where there are any.
    """
    if pattern is not None:
        match = pattern.search(text)
        if match is None:
            return None
        taken = match[1] if pattern.groups else match[0]
        if taken is None or not normalised(taken):
            return None
        if not choices:
            return normalised(taken)
        known = {normalised(choice): choice for choice in choices}
        return known.get(normalised(taken))
    told = normalised(text)
    first: tuple[int, str] | None = None
    for key, choice in _by_length(tuple(choices)):
        place = _find_word(told, key)
        if place is not None and (first is None or place < first[0]):
            first = (place, choice)
    return None if first is None else first[1]


def answer_pattern(text: str | None) -> re.Pattern[str] | None:
    """The compiled evaluation.answer_pattern. Raises SpecError where it is no regular expression.

    Case does not count, as in everything else that is compared here.
    """
    if text is None:
        return None
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        problem = Problem(
            "the job",
            "evaluation.answer_pattern",
            f"is not a regular expression: {error}",
            text,
            "a pattern of Python's re, such as (answer[1-5])",
        )
        raise SpecError([problem]) from None


def parse_json(text: str) -> Any:
    """The JSON value that the whole text is, or INVALID.

    Strict (RFC 8259): no code fence, no text around it, no NaN, no key twice in one object.
    """
    try:
        value = json.loads(
            text.strip(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
        _plain_numbers(value)
        return value
    except (ValueError, RecursionError):
        return INVALID


def canonical_json(value: Any) -> str:
    """One text for all ways to write the same JSON value: key order, spaces, escapes, 1 and 1.0."""
    return json.dumps(_plain_numbers(value), sort_keys=True, separators=(",", ":"))


def keys_right(expected: dict[str, Any], generated: Any) -> dict[str, bool]:
    """For each key of `expected`: whether `generated` has the same value under it."""
    given = generated if isinstance(generated, dict) else {}
    return {
        key: key in given and canonical_json(given[key]) == canonical_json(value)
        for key, value in expected.items()
    }


@lru_cache(maxsize=256)
def _by_length(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """(normalised, as given), the longest first, so that "good enough" goes before "good"."""
    pairs = [(normalised(text), text) for text in texts]
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def _find_word(text: str, word: str) -> int | None:
    start = text.find(word)
    while start != -1:
        if _begins_a_word(text, start) and _ends_a_word(text, start + len(word)):
            return start
        start = text.find(word, start + 1)
    return None


def _begins_a_word(text: str, index: int) -> bool:
    return index == 0 or not (_joins(text[index - 1]) and _joins(text[index]))


def _ends_a_word(text: str, index: int) -> bool:
    return index == len(text) or not (_joins(text[index - 1]) and _joins(text[index]))


def _joins(character: str) -> bool:
    """Whether words of this character's script extend to a space or mark."""
    return (character.isalnum() or character == "_") and not _spaceless(character)


def _spaceless(character: str) -> bool:
    """Han, kana, Hangul, Thai, Lao, Khmer, Burmese: words are not parted by spaces (or, in Korean,
    particles are written onto them)."""
    code = ord(character)
    return (
        0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
        or 0x3040 <= code <= 0x30FF
        or 0x3400 <= code <= 0x9FFF
        or 0xAC00 <= code <= 0xD7AF
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x323AF
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key!r} comes twice")
        out[key] = value
    return out


def _plain_numbers(value: Any, depth: int = 0) -> Any:
    if depth > MAX_JSON_DEPTH:
        raise RecursionError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    if isinstance(value, dict):
        return {key: _plain_numbers(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(inner, depth + 1) for inner in value]
    # 1.0 and 1 are one number to JSON; floats past 2**53 are whole but not exact, and stay
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
