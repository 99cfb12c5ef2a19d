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
_APART = re.compile(r"(?<!\d) | (?![+\-.]?\d)")
"""A space that does not part two numbers."""
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
        text = _APART.sub("", " ".join(text.split()))
    return text


def rule_words(ignore: Iterable[str]) -> str:
    """ "white space apart", "white space and case apart", "to the letter"."""
    parts = [WORDS[name] for name in WORDS if name in set(ignore)]
    if not parts:
        return "to the letter"
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) + " apart"


def match_keys(
    messages: Sequence[Mapping[str, Any]],
    identities: Sequence[str] = (),
    more: Sequence[Any] = (),
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
    rule = tuple(ignore)
    last = len(messages) - 1
    while last >= 0 and messages[last]["role"] != "assistant":
        last -= 1
    state = blake2b(digest_size=KEY_BYTES)
    parts = [*identities, "", *(_text(each) for each in more if each is not None), ""]
    for message in messages[:last]:
        parts += _parts(message, rule)
    _feed(state, parts)
    prompt = state.digest()
    parts = [""]
    for message in messages[last:]:
        parts += _parts(message, rule)
    parts += [str(index) for index, turn in enumerate(messages) if turn.get("trained") is False]
    _feed(state, parts)
    return prompt, state.digest()


def _parts(message: Mapping[str, Any], rule: tuple[str, ...]) -> list[str]:
    parts = [str(message["role"]), _compared(message["content"], rule)]
    if len(message) > 2:
        parts += [
            f"{key} {comparable(_text(message[key]), rule)}"
            for key in sorted(message)
            if key not in _OWN
        ]
    return parts


def _compared(content: Any, rule: tuple[str, ...]) -> str:
    text = content if isinstance(content, str) else _text(content)
    # a system turn or a template comes again with every row
    return _known(text, rule) if len(text) < 200 else comparable(text, rule)


@lru_cache(maxsize=1024)
def _known(text: str, rule: tuple[str, ...]) -> str:
    return comparable(text, rule)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _feed(state: Any, parts: Iterable[str]) -> None:
    """Hash texts so that no two lists of them give the same bytes."""
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        state.update(b"%d:" % len(raw))
        state.update(raw)
