"""Find special tokens spelled out in a row's own text, and encode them as text.

Imports the standard library and this package's `messages`; tokenizers when called. The tokenizer is
passed in.

A tokenizer turns "<|im_end|>" into the token that ends a turn wherever it stands: a question that
speaks of it would end there, and an answer would train the end in its middle. Here each such word
of a row is wrapped in two private characters before the row is rendered; so its place in the text
is known, whatever the template does around it. What stands between the special tokens that the
template itself wrote is then tokenized by a copy of the tokenizer that knows none.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from runner.data.messages import strings_in
from runner.data.tokenizer_type import Backend, Tokenizer

Policy = Literal["text", "allow", "refuse"]
Offsets = list[tuple[int, int]]

# Private characters, two of them a pair; the first pair that a row does not hold is taken.
_PAIRS = tuple((chr(code), chr(code + 1)) for code in range(0xE8A0, 0xE8C0, 2))
_SENTINEL = "\ue8c0"
_COPY = "runner_without_special_tokens"  # where a tokenizer keeps its copy
# What a model writes itself, in its own turn: there it is a token, special or not.
_THINK = ("<think>", "</think>")


class UnsafeTextError(Exception):
    """A special token's text that this tokenizer can't encode as text."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `foreign` are the places of special tokens that a row spelled out."""

    text: str
    foreign: tuple[tuple[int, int], ...] = ()  # [start, end) in characters, in order

    def part(self, start: int, end: int) -> Rendered:
        """The text from `start` to `end`; a special token that reaches over an edge is cut."""
        inside = tuple(
            (max(a, start) - start, min(b, end) - start)
            for a, b in self.foreign
            if a < end and b > start
        )
        return Rendered(self.text[start:end], inside)

    @property
    def names(self) -> list[str]:
        """The special tokens that the row spelled out, one for each place."""
        return [self.text[start:end] for start, end in self.foreign]


@dataclass
class Marks:
    """How the special tokens of one conversation are marked."""

    pair: tuple[str, str]

    def remove(self, text: str) -> Rendered:
        """The rendered text without the marks, and where they stood.

        A mark alone (a template cut the text in two) is dropped. Marks that were written as JSON
        escapes are dropped with what they stand around.
        """
        for mark in self.pair:
            text = text.replace(f"\\u{ord(mark):04x}", mark)
        opening, closing = self.pair
        parts: list[str] = []
        spans: list[tuple[int, int]] = []
        length, opened = 0, -1
        for piece in re.split(f"([{opening}{closing}])", text):
            if piece == opening:
                opened = length
            elif piece == closing:
                if opened >= 0 and length > opened:
                    spans.append((opened, length))
                opened = -1
            else:
                parts.append(piece)
                length += len(piece)
        return Rendered("".join(parts), tuple(spans))


@dataclass
class ControlTokens:
    """The special tokens of a tokenizer, and those that its template frames turns with."""

    tokenizer: Tokenizer
    kept: frozenset[str] = frozenset()  # special tokens that rows may hold
    framing: frozenset[str] = frozenset()  # added tokens, not special, that frame turns
    policy: Policy = "text"  # what becomes of those that a row's text spells out
    _search: dict[bool, re.Pattern[str]] = field(init=False, default_factory=dict)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Text -> id of each."""
        found = {
            str(token.content): int(number)
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or token.content in self.framing
        }
        for text, number in zip(
            self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True
        ):
            if number is not None:  # one that the vocabulary lacks
                found[str(text)] = int(number)
        return {text: number for text, number in found.items() if text and text not in self.kept}

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {number: text for text, number in self.ids.items()}

    def pattern(self, *, own_turn: bool) -> re.Pattern[str]:
        """Finds the special tokens that a text spells out; in a model's turn but for its think."""
        if own_turn not in self._search:
            words = [text for text in self.ids if not (own_turn and text in _THINK)]
            self._search[own_turn] = re.compile(_any_of(words))
        return self._search[own_turn]

    def mark(
        self, messages: list[dict[str, object]], tools: list[object] | None
    ) -> tuple[list[dict[str, object]], list[object] | None, Marks | None]:
        """Messages and tools with special tokens in their text marked; None: they hold none."""
        plain, own = self.pattern(own_turn=False), self.pattern(own_turn=True)
        parts = [(turn, own if turn["role"] == "assistant" else plain) for turn in messages]
        texts = [text for part, _ in [*parts, (tools, plain)] for text in strings_in(part)]
        held = any(
            pattern.search(text)
            for part, pattern in [*parts, (tools, plain)]
            for text in strings_in(part)
        )
        if not held:
            return messages, tools, None
        pair = next(
            (pair for pair in _PAIRS if not any(mark in text for mark in pair for text in texts)),
            None,
        )
        if pair is None:
            raise UnsafeTextError("the row holds all of the private characters that mark them")
        wrapped = rf"{pair[0]}\g<0>{pair[1]}"
        marked = [
            {
                key: value if key == "role" else _replaced(value, pattern, wrapped)
                for key, value in message.items()
            }
            for message, pattern in parts
        ]
        told = None if tools is None else [_replaced(tool, plain, wrapped) for tool in tools]
        return marked, told, Marks(pair)

    def tokenize(self, rows: Sequence[Rendered]) -> list[tuple[list[int], Offsets]]:
        """Ids and character offsets of each text; what rows spelled out is encoded as text.

        Raises UnsafeTextError where the tokenizer makes a special token of it all the same.
        """
        if not rows:
            return []
        batch = self.tokenizer(
            [row.text for row in rows],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        out = []
        for row, ids, offsets in zip(
            rows, batch["input_ids"], batch["offset_mapping"], strict=True
        ):
            told = list(ids), [(int(start), int(end)) for start, end in offsets]
            as_text = row.foreign and self.policy != "allow"
            out.append(self._as_text(row, *told) if as_text else told)
        return out

    def _as_text(
        self, row: Rendered, ids: list[int], offsets: Offsets
    ) -> tuple[list[int], Offsets]:
        """Ids in which only the template's special tokens are special ones."""
        starts = [start for start, _ in row.foreign]

        def is_the_templates(index: int) -> bool:
            if ids[index] not in self._plain_forbidden:
                return False
            start, end = offsets[index]
            # tokens that strip white space hold it in their offsets
            shift = row.text[start:end].find(self._texts[ids[index]])
            if shift < 0:
                return False  # another text that the tokenizer takes for it
            at = bisect_right(starts, start + shift) - 1
            return at < 0 or start + shift >= row.foreign[at][1]

        fixed = [index for index in range(len(ids)) if is_the_templates(index)]
        told: list[int] = []
        places: Offsets = []
        reached = 0
        for index in [*fixed, None]:
            stop = len(row.text) if index is None else offsets[index][0]
            if stop > reached:
                part = row.part(reached, stop)
                more, where = self._plainly(part.text, at_start=reached == 0)
                if leaked := [self._texts[one] for one in more if one in self._plain_forbidden]:
                    raise UnsafeTextError(
                        f"{leaked[0]!r} in its text can't be encoded as text by this tokenizer"
                    )
                told += more
                places += [(reached + start, reached + end) for start, end in where]
            if index is not None:
                told.append(ids[index])
                places.append(offsets[index])
                reached = max(reached, offsets[index][1])
        return told, places

    @cached_property
    def _plain_forbidden(self) -> frozenset[int]:
        """What a text that is encoded as text must not become; an unknown character may."""
        unknown = self.tokenizer.unk_token_id
        return frozenset(number for number in self._texts if number != unknown)

    @cached_property
    def _in_place(self) -> bool:
        """Whether the tokenizer itself can read a part of a text without its special tokens.

        It can where a text is tokenized alike at the start and behind a special token, and where
        all special tokens are to be text. A copy costs seconds for a large vocabulary.
        """
        ordinary = {
            token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special
        }
        if self.framing or self.kept or not self.ids.keys() <= ordinary:
            return False
        backend, name = self.tokenizer.backend_tokenizer, next(iter(self.ids))
        return all(
            backend.encode(name + text, add_special_tokens=False).ids[1:]
            == backend.encode(text, add_special_tokens=False).ids
            for text in ("x", " x", "\nx")
        )

    @property
    def _plain(self) -> tuple[Backend, dict[int | None, int]]:
        """A copy of the tokenizer without its special tokens, but for one that no text holds.

        With it the ids of added tokens that stay, which a copy counts anew, as they were.
        """
        import tokenizers

        key = frozenset(self.ids)
        made = getattr(self.tokenizer, _COPY, None)
        if made is None or made[0] != key:
            record = json.loads(self.tokenizer.backend_tokenizer.to_str())
            record["added_tokens"] = [
                token for token in record["added_tokens"] if token["content"] not in key
            ]
            record["truncation"] = record["padding"] = None
            backend = tokenizers.Tokenizer.from_str(json.dumps(record))
            backend.add_special_tokens(
                [tokenizers.AddedToken(_SENTINEL, special=True, normalized=False)]
            )
            was: dict[int | None, int] = {
                backend.token_to_id(one["content"]): int(one["id"])
                for one in record["added_tokens"]
            }
            made = (key, backend, was)
            setattr(self.tokenizer, _COPY, made)
        return made[1], made[2]

    def _plainly(self, text: str, *, at_start: bool) -> tuple[list[int], Offsets]:
        """`text` tokenized as it stands behind a special token, or at the start of a text."""
        if self._in_place:
            backend = self.tokenizer.backend_tokenizer
            before = backend.encode_special_tokens
            backend.encode_special_tokens = True
            try:
                made = backend.encode(text, add_special_tokens=False)
            finally:
                backend.encode_special_tokens = before
            return list(made.ids), list(made.offsets)
        copy, was = self._plain
        first = "" if at_start else _SENTINEL
        made = copy.encode(first + text, add_special_tokens=False)
        width = len(first)
        return [was.get(one, one) for one in made.ids[width:]], [
            (max(0, start - width), max(0, end - width)) for start, end in made.offsets[width:]
        ]


def _replaced(value: object, pattern: re.Pattern[str], by: str) -> object:
    if isinstance(value, str):
        return pattern.sub(by, value)
    if isinstance(value, Mapping):
        return {
            _replaced(key, pattern, by): _replaced(inner, pattern, by)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_replaced(inner, pattern, by) for inner in value]
    return value


_Tree: TypeAlias = "dict[str, _Tree]"
"""Words by their characters; "" is where one ends."""


def _any_of(words: Iterable[str]) -> str:
    """A regular expression for any of `words`, the longest first, by their common beginnings.

    Plain alternatives would be tried one by one at each "<", and Gemma has six thousand.
    """
    tree: _Tree = {}
    for word in words:
        node = tree
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branches(tree) if tree else r"(?!)"


def _branches(tree: _Tree) -> str:
    ways = []
    for character, rest in tree.items():
        if not character:
            continue
        ways.append(re.escape(character) + (_branches(rest) if set(rest) != {""} else ""))
    joined = ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"
    return f"(?:{joined})?" if "" in tree else joined
