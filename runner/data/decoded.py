"""Whether token ids still say what the text said: what a tokenizer loses of it, counted.

Imports the standard library; the tokenizer is passed in.

A tokenizer without its vocabulary, or of another language, makes nothing or "unknown" of a text,
and a training on that runs through without a word. What a tokenizer's normalisation does (case,
width, accents, white space, control characters) is not counted.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from runner.data.tokenizer_type import Backend, Tokenizer

MOST_LOST = 0.05
"""Share of the rows' characters that may be lost; more is refused."""


def lost_characters(
    tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """For each text: its characters, white space apart, and how many the ids don't decode to."""
    backend = tokenizer.backend_tokenizer
    decoded = backend.decode_batch([list(row) for row in ids], skip_special_tokens=False)
    return [_compared(backend, *pair) for pair in zip(texts, decoded, strict=True)]


def _compared(backend: Backend, text: str, decoded: str) -> tuple[int, int]:
    wanted, found = "".join(text.split()), "".join(decoded.split())
    if wanted == found:
        return len(wanted), 0
    normalizer = backend.normalizer
    plain = text if normalizer is None else normalizer.normalize_str(text)
    counted = Counter(_letters(plain))
    missing = counted - Counter(_letters(decoded))
    total = len(wanted)
    lost = sum(missing.values())
    if lost:  # of what the normalisation itself took away nothing is lost
        lost = min(lost, (Counter(_letters(text)) - Counter(_letters(decoded))).total())
    return total, min(lost, total)


def _letters(text: str) -> str:
    """The text as normalisations leave it alike: no case, width, accents, space or controls."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return "".join(filter(_counts, folded))


@lru_cache(maxsize=1 << 16)
def _counts(character: str) -> bool:
    return character != "▁" and unicodedata.category(character)[0] not in "ZMC"
