"""When two rows are the same: one definition for duplicates, conflicts, leaks and splits. Pure.

Imports the standard library only. What does not count is the job's to say (data.clean.ignore); by
default that is white space alone.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

KEY_BYTES = 16
DEFAULT = ("white_space",)
WORDS = {
    "white_space": "white space",
    "case": "case",
    "width": "width (NFKC)",
    "punctuation": "punctuation",
}
_UNSEEN = dict.fromkeys(map(ord, "\u180e\u200b\u2060\ufeff"))
"""Characters without width that part nothing but lines: white space to a reader."""
_BETWEEN_NUMBERS = re.compile(r" (?<=\d )(?=[+\-.]?\d)")
"""A space that parts two numbers. It begins with the space itself, which re looks for quickly."""
_DIGITS = "0123456789"
_OWN = ("role", "content", "trained")


def comparable(text: str, ignore: Iterable[str] = DEFAULT) -> str:
    """`text` as it is compared, without what does not count.

    white_space: spaces, line breaks and the like, but for one between two numbers ("3 14" is not
    "31 4"). case: letters folded. width: NFKC, so that full-width, superscript and ligature forms
    are the plain ones. punctuation: every character of Unicode's category P.
    """
    chosen = frozenset(ignore)
    before = None
    while text != before:  # NFKC can make spaces of what had none, and letters that fold again
        before = text
        text = _without(text, chosen)
        if "width" not in chosen or text.isascii():
            break
    return text


def _without(text: str, chosen: frozenset[str]) -> str:
    if "width" in chosen and not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "case" in chosen:
        text = text.casefold()
    if "punctuation" in chosen:
        text = "".join([each for each in text if unicodedata.category(each)[0] != "P"])
    if "white_space" in chosen:
        if not text.isascii():
            text = text.translate(_UNSEEN)
        text = _without_spaces(text)
    return text


def _without_spaces(text: str) -> str:
    """The words of `text` in one, but for a space between two numbers."""
    words = text.split()
    if text.isascii() and not any(digit in text for digit in _DIGITS):
        return "".join(words)  # there is no number: a tenth of the time
    parts = _BETWEEN_NUMBERS.split(" ".join(words))
    return " ".join([part.replace(" ", "") for part in parts])


def rule_words(ignore: Iterable[str]) -> str:
    """ "white space apart", "white space and case apart", "to the letter"."""
    parts = [WORDS[name] for name in WORDS if name in set(ignore)]
    if not parts:
        return "to the letter"
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) + " apart"


def match_keys(
    messages: Sequence[Mapping[str, object]],
    identities: Sequence[str] = (),
    more: Sequence[object] = (),
    ignore: Iterable[str] = DEFAULT,
) -> tuple[bytes, bytes]:
    """(prompt key, row key), each KEY_BYTES long: equal where two prompts, or rows, are the same.

    Args:
        messages: role, content and whatever else the turns hold (calls, reasoning), JSON-ready.
        identities: what tells each image.
        more: what belongs to the whole row besides (tool definitions), JSON-ready.

    The prompt is all but the last assistant answer and what follows it, and whether a turn is
    trained.
    """
    return match_keys_by_rules(messages, identities, more, (ignore,))[0]


def match_keys_by_rules(
    messages: Sequence[Mapping[str, object]],
    identities: Sequence[str],
    more: Sequence[object],
    rules: Sequence[Iterable[str]],
) -> list[tuple[bytes, bytes]]:
    """`match_keys` by each of the rules; the row is walked once, and hashed once for rules that
    leave the same of it.
    """
    last = len(messages) - 1
    while last >= 0 and messages[last]["role"] != "assistant":
        last -= 1
    head = [*identities, "", *(_text(each) for each in more if each is not None), ""]
    prompt = [_texts(message) for message in messages[:last]]
    rest = [_texts(message) for message in messages[last:]]
    tail = [str(index) for index, turn in enumerate(messages) if turn.get("trained") is False]
    known: dict[tuple[str, ...], tuple[bytes, bytes]] = {}
    keys = []
    for rule in map(tuple, rules):
        before, behind = _parts(prompt, rule), _parts(rest, rule)
        compared = (*before, "", *behind)  # how many of each there are is the row's, not the rule's
        if compared not in known:
            state = blake2b(digest_size=KEY_BYTES)
            _feed(state, [*head, *before])
            prompt_key = state.digest()
            _feed(state, ["", *behind, *tail])
            known[compared] = prompt_key, state.digest()
        keys.append(known[compared])
    return keys


def _texts(message: Mapping[str, object]) -> tuple[str, str, list[tuple[str, str]]]:
    """(role, content, other keys with their values) of a turn, all as text."""
    content = message["content"]
    others = (
        [(key, _text(message[key])) for key in sorted(message) if key not in _OWN]
        if len(message) > 2
        else []
    )
    return str(message["role"]), content if isinstance(content, str) else _text(content), others


def _parts(
    turns: Sequence[tuple[str, str, list[tuple[str, str]]]], rule: tuple[str, ...]
) -> list[str]:
    """What of the turns is compared by `rule`."""
    parts: list[str] = []
    for role, content, others in turns:
        parts += [role, _compared(content, rule)]
        parts += [f"{key} {comparable(text, rule)}" for key, text in others]
    return parts


def _compared(text: str, rule: tuple[str, ...]) -> str:
    # a system turn or a template comes again with every row
    return _known(text, rule) if len(text) < 200 else comparable(text, rule)


@lru_cache(maxsize=1024)
def _known(text: str, rule: tuple[str, ...]) -> str:
    return comparable(text, rule)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _feed(state: Any, parts: Iterable[str]) -> None:
    """Hash texts so that no two lists of them give the same bytes."""
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        state.update(b"%d:" % len(raw))
        state.update(raw)
