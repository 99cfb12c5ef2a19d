"""Token ids and labels of conversations: only what the assistant says carries loss.

Imports the standard library and this package's `encoder` and what it gives; the tokenizer is
passed in.

Why not the chat template's own markers: almost no template has {% generation %}, and without it
the mask is silently all zero. Here a conversation is rendered once and tokenized once, and the
assistant's characters are found by rendering prefixes of it: what stands between
render(turns before, add_generation_prompt=True) and render(turns up to and with the answer) is
what a model has to write at that place. Labels follow positions, never ids, so a pad token that is
the end-of-turn token too masks nothing, and template-like text in a user turn stays untrained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from runner.data.encoded import IGNORED_LABEL, Encoded, Row, Segment
from runner.data.encoder import Encoder
from runner.data.messages import Tools
from runner.data.template import Turn
from runner.data.tokenizer_type import Tokenizer

ROWS_AT_ONCE = 512

CHARACTERS_AT_ONCE = 2_000_000


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Turn],
    max_length: int | None,
    tools: Tools | None = None,
) -> Encoded:
    """One conversation's ids and labels; `max_length` (tokens) cuts the end, None cuts nothing.

    Messages have the keys that `apply_chat_template` takes, and `trained: False` for an assistant
    turn that carries no loss; `tools` are the row's tool definitions.

    Raises RefusedError where the tokenizer has no chat template or gives no offsets; SpecError
    where its template refuses the conversation, no assistant turn can be found in what it renders,
    or a special token in the row's text can't be encoded as text, or is not to be.
    """
    encoder = Encoder(tokenizer)
    (labelled,) = encoder.label_rows([("the row", messages, tools)])
    return encoder.finish(labelled, max_length)


def encode_rows(
    tokenizer: Tokenizer, rows: Iterable[Row], max_length: int | None
) -> Iterator[Encoded]:
    """`encode` for each of (line, messages) or (line, messages, tools), in order.

    Streams, ROWS_AT_ONCE in memory at most. A row that truncation leaves without a label comes too,
    with `supervised` 0. Raises as `encode` does, naming the line.
    """
    encoder = Encoder(tokenizer)
    for chunk in _chunks(rows):
        for labelled in encoder.label_rows(chunk):
            yield encoder.finish(labelled, max_length)


def prompt_ids(
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[Turn]],
    tools: Sequence[Tools | None] | None = None,
) -> list[list[int]]:
    """Token ids of each conversation up to where the assistant answers, as training has them.

    Raises SpecError where the template refuses one.
    """
    encoder = Encoder(tokenizer)
    defined = [None] * len(prompts) if tools is None else list(tools)
    return [
        encoder.prompt_ids(messages, given)
        for messages, given in zip(prompts, defined, strict=True)
    ]


def special_texts(tokenizer: Tokenizer, text: str) -> list[str]:
    """The special tokens that a text spells out, in order."""
    pattern = Encoder(tokenizer).template.control.pattern(own_turn=False)
    return pattern.findall(text)


def segments(
    tokenizer: Tokenizer,
    messages: Sequence[Turn],
    max_length: int | None,
    tools: Tools | None = None,
) -> tuple[Encoded, list[Segment]]:
    """The row, and the text its tokens stand for, in alternating trained and untrained stretches.

    Joined, the segments are the rendered conversation, up to where `max_length` cuts it. They are
    cut from the rendered text by the tokens' offsets: tokens of byte-level vocabularies hold parts
    of characters, and decoding them one by one would show replacement marks.
    """
    encoder = Encoder(tokenizer)
    (labelled,) = encoder.label_rows([("the row", messages, tools)])
    row = encoder.finish(labelled, max_length)
    out: list[Segment] = []
    start = 0
    trained = False
    for index, label in enumerate(row.labels):
        if (label != IGNORED_LABEL) != trained:
            if labelled.starts[index] > start:
                out.append(Segment(labelled.text[start : labelled.starts[index]], trained))
            start, trained = labelled.starts[index], not trained
    end = labelled.ends[len(row.labels) - 1] if row.labels else 0
    if len(row.labels) == len(labelled.ids):
        end = len(labelled.text)  # characters that left no token, if any, belong to the text still
    if end > start:
        out.append(Segment(labelled.text[start:end], trained))
    return row, out


def end_of_turn_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that should stop generation: eos, then what the chat template ends a turn with."""
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    encoder = Encoder(tokenizer)
    if encoder.template.dummy is not None:
        (labelled,) = encoder.label([encoder.lay_out("the probe", encoder.template.dummy, None)])
        ending = encoder.finish(labelled, None).end_of_turn_id
        if ending is not None and ending not in ids:
            ids.append(ending)
    return tuple(ids)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += sum(len(str(message.get("content") or "")) for message in row[1])
        if len(chunk) == ROWS_AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
