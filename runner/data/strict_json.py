"""One JSON text to a value: a key twice is refused, an unused value may be anything. Pure.

Imports the standard library only.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal

MOST_DIGITS = 4300
"""Digits of an integer that Python reads at once (sys.int_info.default_max_str_digits)."""
MOST_LEVELS = 200
"""Levels of nesting that are read; no row that can be used has as many."""
TOO_DEEP = f"(nested deeper than {MOST_LEVELS} levels: not read)"

_PART = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_CLOSES = {"]": "[", "}": "{"}


class DuplicateKeyError(ValueError):
    """A key comes twice in one object; which of the two is meant, nobody can tell."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} comes twice in one object")
        self.key = key


def loads(text: str) -> object:
    """The value of a whole JSON text.

    An integer of more than MOST_DIGITS digits is a Decimal; what is nested deeper than MOST_LEVELS
    is TOO_DEEP. Raises json.JSONDecodeError, DuplicateKeyError; RecursionError where a nested value
    doesn't end.
    """
    if text.count("[") + text.count("{") <= MOST_LEVELS:
        return DECODER.decode(text)
    found = cut_deep(text)
    if found is None:
        return DECODER.decode(text)
    return DECODER.decode(found[0] + text[found[1] :])


def cut_deep(text: str, start: int = 0) -> tuple[str, int] | None:
    """(the array or object at `start` with all that is too deep cut, where it ends in `text`).

    None where it does not end within `text`, or its brackets don't match.
    """
    opened: list[str] = []
    kept: list[str] = []
    at = start
    for part in _PART.finditer(text, start):
        mark = part[0]
        if mark in "[{":
            opened.append(mark)
            if len(opened) == MOST_LEVELS + 1:
                kept.append(text[at : part.start()])
        elif mark in "]}":
            if not opened or opened.pop() != _CLOSES[mark]:
                return None
            if len(opened) == MOST_LEVELS:
                kept.append(json.dumps(TOO_DEEP))
                at = part.end()
            if not opened:
                return "".join(kept) + text[at : part.end()], part.end()
        elif mark == '"':  # a text that does not end
            return None
    return None


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= MOST_DIGITS else Decimal(digits)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return out


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer)
