"""A conversation as a model takes it: token ids and labels. Pure.

Imports the standard library and this package's `messages` and `template`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.data.messages import Tools
from runner.data.template import Turn

# What cross-entropy ignores, in torch and everywhere downstream of it.
IGNORED_LABEL = -100

# Where a row comes from: its line or row number, with its file where there is more than one.
Line = int | str

Row = tuple[Line, Sequence[Turn]] | tuple[Line, Sequence[Turn], Tools | None]


@dataclass(frozen=True)
class Encoded:
    """One conversation as a model takes it. `input_ids` and `labels` have the same length."""

    input_ids: list[int]
    labels: list[int]  # the token id where trained, IGNORED_LABEL elsewhere; not shifted
    truncated: bool  # tokens were cut off the end to fit max_length
    supervised: int  # tokens that carry loss
    prompt_tokens: int = 0  # tokens before the first trained one, before truncation
    turns: int = 0  # assistant turns that carry loss, before truncation
    # Assistant turns left untrained, since the template writes them otherwise once others follow.
    skipped_turns: int = 0
    # Turns whose first token mixes header and answer, and could not be parted: that token is out.
    straddled_turns: int = 0
    end_of_turn_id: int | None = None  # what ends an assistant turn; None: no special token does
    end_of_turn_trained: bool = False  # the last trained turn still has its end, trained
    # Trained turns without their end, which the template writes otherwise once others follow.
    unended_turns: int = 0
    # Trained answers that stand behind another text than the model would be asked with.
    reread_turns: int = 0
    # Trained turns whose generation prompt continues with a think mark that the row's text lacks.
    opened_turns: int = 0
    empty_think: int = 0  # trained turns that hold a think block with nothing in it
    special_texts: tuple[str, ...] = ()  # special tokens that the row's own text spells out
    left_out: tuple[str, ...] = ()  # parts of the row that the template does not write
    characters: int = 0  # of the rendered text, white space apart
    lost_characters: int = 0  # of these, what the ids don't decode to


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text of which all or nothing carries loss."""

    text: str
    trained: bool
