"""What of a transformers tokenizer the rows need, as a type. Imports the standard library.

A fast tokenizer (PreTrainedTokenizerFast) has all of it; nothing here imports transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypedDict, overload


class Token(Protocol):
    """A token that was added to a vocabulary (tokenizers.AddedToken)."""

    @property
    def content(self) -> str: ...

    @property
    def special(self) -> bool: ...


class EncodedText(Protocol):
    """A text as ids and character offsets (tokenizers.Encoding)."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]: ...


class Normalizer(Protocol):
    """tokenizers.normalizers.Normalizer."""

    def normalize_str(self, text: str, /) -> str: ...


class Backend(Protocol):
    """The tokenizer below (tokenizers.Tokenizer)."""

    encode_special_tokens: bool

    @property
    def normalizer(self) -> Normalizer | None: ...

    def encode(self, text: str, /, *, add_special_tokens: bool) -> EncodedText: ...

    def decode_batch(self, rows: list[list[int]], /, *, skip_special_tokens: bool) -> list[str]: ...

    def to_str(self) -> str: ...


class EncodedOne(TypedDict):
    """What a tokenizer makes of one text."""

    input_ids: list[int]


class EncodedBatch(TypedDict):
    """What it makes of several; offsets in characters, where they are asked for."""

    input_ids: list[list[int]]
    offset_mapping: list[list[tuple[int, int]]]


class Tokenizer(Protocol):
    """transformers' fast tokenizer."""

    chat_template: str | Mapping[str, str] | None
    is_fast: bool
    eos_token: str | None
    eos_token_id: int | None
    bos_token_id: int | None
    unk_token_id: int | None

    @property
    def all_special_tokens(self) -> Sequence[str]: ...

    @property
    def all_special_ids(self) -> Sequence[int | None]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Token]: ...

    @property
    def backend_tokenizer(self) -> Backend: ...

    @overload
    def __call__(self, texts: str, /, **options: bool) -> EncodedOne: ...

    @overload
    def __call__(self, texts: list[str], /, **options: bool) -> EncodedBatch: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        /,
        *,
        tools: Sequence[object] | None,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> object: ...

    def convert_tokens_to_ids(self, tokens: list[str], /) -> list[int]: ...

    def decode(self, ids: Sequence[int], /, **options: bool) -> str: ...
