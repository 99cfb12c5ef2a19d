"""Tokens with the characters that they stand for. Pure; standard library only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenSpans:
    """Token ids with their characters: starts[i] to ends[i] is what ids[i] stands for."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


def close_gaps(offsets: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Starts and ends of tokens, without the gaps that tokenizers leave.

    Some (Llama 3) trim white space from a token's offsets, to nothing for a token of white space
    alone; the gap is given to the token behind it. Tokens that are parts of one character all
    start and end with it.
    """
    starts: list[int] = []
    ends: list[int] = []
    reached = 0
    for start, end in offsets:
        starts.append(start if start < reached else reached)
        if end > reached:
            reached = end
        ends.append(reached)
    return starts, ends


def find_first_token(tokens: TokenSpans, start: int) -> int | None:
    """Index of the token that begins exactly at character `start`; None if one reaches over it."""
    index = bisect_left(tokens.starts, start)
    if index and tokens.ends[index - 1] > start:
        return None
    if index < len(tokens.ids) and tokens.starts[index] != start:
        return None
    return index
