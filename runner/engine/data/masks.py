"""Token ids and labels of conversations: only what the assistant says carries loss.

Imports the standard library and this package's `formats`; the tokenizer is passed in.

Why not the chat template's own markers: almost no template has {% generation %}, and without it
the mask is silently all zero. Here a conversation is rendered once and tokenized once, and the
assistant's characters are found by rendering prefixes of it: what stands between
render(turns before, add_generation_prompt=True) and render(turns up to and with the answer) is
what a model has to write at that place. Labels follow positions, never ids, so a pad token that is
the end-of-turn token too masks nothing, and template-like text in a user turn stays untrained.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from runner.engine.data.messages import Message, Tools, for_template, is_trained
from runner.errors import RefusedError, RunnerError

# What cross-entropy ignores, in torch and everywhere downstream of it.
IGNORED_LABEL = -100

# Where a row comes from: its line or row number, with its file where there is more than one.
Line = int | str
Row = tuple[Line, Sequence[Message]] | tuple[Line, Sequence[Message], Tools | None]

ROWS_AT_ONCE = 512
CHARACTERS_AT_ONCE = 2_000_000
TAILS_KEPT = 64

# A word no template holds, to see what a template writes after an answer.
_PROBE = "runnerprobe"

# The space before an answer is rendered with it, not with the generation prompt: tokenizers join
# a space to the word that follows, and a prompt that ends in one would cut that token in two.
_PLAIN_TEMPLATE = (
    "%(bos)s"
    "{%% for message in messages %%}"
    "{%% if message['role'] == 'assistant' %%}"
    "{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}"
    "{%% else %%}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\\n' }}"
    "{%% endif %%}"
    "{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ 'Assistant:' }}{%% endif %%}"
)


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


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text of which all or nothing carries loss."""

    text: str
    trained: bool


def encode(
    tokenizer: Any, messages: Sequence[Message], max_length: int | None, tools: Tools | None = None
) -> Encoded:
    """One conversation's ids and labels; `max_length` (tokens) cuts the end, None cuts nothing.

    Raises RefusedError where the tokenizer has no chat template, gives no offsets, its template
    refuses the conversation, or no assistant turn can be found in what it renders.
    """
    encoder = _Encoder(tokenizer)
    return encoder.finish(encoder.label([(messages, tools)])[0], max_length)


def encode_rows(tokenizer: Any, rows: Iterable[Row], max_length: int | None) -> Iterator[Encoded]:
    """`encode` for each of (line, messages) or (line, messages, tools), in order.

    Streams, ROWS_AT_ONCE in memory at most.

    A row that truncation leaves without a label comes too, with `supervised` 0. Raises RefusedError
    as `encode` does, naming the line.
    """
    encoder = _Encoder(tokenizer)
    for chunk in _chunks(rows):
        for labelled in encoder.label_rows(chunk):
            yield encoder.finish(labelled, max_length)


def prompt_ids(
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    tools: Sequence[Tools | None] | None = None,
) -> list[list[int]]:
    """Token ids of each conversation up to where the assistant answers, as training has them.

    Raises RefusedError where the template refuses one.
    """
    encoder = _Encoder(tokenizer)
    given = tools or [None] * len(prompts)
    return [
        encoder.ids_of(encoder.render(messages, True, one))
        for messages, one in zip(prompts, given, strict=True)
    ]


def template_name(tokenizer: Any) -> str:
    """The chat template as messages name it."""
    return f"the chat template of {_tokenizer_name(tokenizer)}"


def segments(
    tokenizer: Any, messages: Sequence[Message], max_length: int | None, tools: Tools | None = None
) -> tuple[Encoded, list[Segment]]:
    """The row, and the text its tokens stand for, in alternating trained and untrained stretches.

    Joined, the segments are the rendered conversation, up to where `max_length` cuts it. They are
    cut from the rendered text by the tokens' offsets: tokens of byte-level vocabularies hold parts
    of characters, and decoding them one by one would show replacement marks.
    """
    encoder = _Encoder(tokenizer)
    labelled = encoder.label([(messages, tools)])[0]
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


def end_of_turn_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that should stop generation: eos, then what the chat template ends a turn with."""
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    encoder = _Encoder(tokenizer)
    if encoder.dummy is not None:
        ending = encoder.finish(encoder.label([(encoder.dummy, None)])[0], None).end_of_turn_id
        if ending is not None and ending not in ids:
            ids.append(ending)
    return tuple(ids)


def ensure_chat_template(tokenizer: Any) -> str | None:
    """Give a tokenizer without a chat template a plain one; returns a sentence that says so.

    Returns None, and changes nothing, where there is a template. The plain template writes
    "User: ...\\nAssistant: ...<eos>\\n"; a beginning-of-sequence token is written where the
    tokenizer would add one by itself. Raises RefusedError where there is no eos token either: a
    model trained so could not learn to stop.
    """
    if tokenizer.chat_template:
        return None
    name = _tokenizer_name(tokenizer)
    if not tokenizer.eos_token:
        raise RefusedError(
            f"the tokenizer {name} has neither a chat template nor an eos token",
            "set eos_token in its tokenizer_config.json, or take a model with a chat template",
        )
    probe = list(tokenizer("x")["input_ids"])
    adds_bos = tokenizer.bos_token_id is not None and probe[:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = _PLAIN_TEMPLATE % {"bos": "{{ bos_token }}" if adds_bos else ""}
    return (
        f"{name} has no chat template; a plain one is used instead: "
        f'"User: …", "Assistant: …{tokenizer.eos_token}", one turn on each line'
    )


@dataclass(frozen=True)
class _Span:
    """Where an assistant turn stands in the rendered text, in characters."""

    start: int  # behind the generation prompt
    end: int  # behind all the template writes for the turn
    content_end: int | None  # behind the answer, before what ends the turn; None: not known


@dataclass(frozen=True)
class _Layout:
    text: str
    spans: list[_Span]
    skipped: int  # assistant turns with no span


@dataclass(frozen=True)
class _Tokens:
    """Token ids with their characters: starts[i] to ends[i] is what ids[i] stands for."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


@dataclass(frozen=True)
class _Labelled:
    text: str
    ids: list[int]
    starts: list[int]
    ends: list[int]
    trained: list[range]  # token ranges, one for each trained turn
    endings: list[int | None]  # index of each trained turn's end-of-turn token
    skipped: int
    straddled: int


class _Encoder:
    """A tokenizer with what is asked of its template only once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template_name = template_name(tokenizer)
        if not tokenizer.chat_template:
            raise RefusedError(
                f"the tokenizer {_tokenizer_name(tokenizer)} has no chat template",
                "ensure_chat_template installs a plain one",
            )
        if not tokenizer.is_fast:
            raise RefusedError(
                f"the tokenizer {_tokenizer_name(tokenizer)} gives no character offsets, which "
                "the loss mask is built from",
                "use its fast version (a tokenizer.json)",
            )
        self.special_ids = frozenset(
            [int(i) for i in tokenizer.all_special_ids]
            + [int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        )
        self.tail_ids: dict[str, list[int]] = {}
        self.dummy, self.turn_suffix = self._probe_template()

    def label_rows(self, rows: Sequence[Row]) -> list[_Labelled]:
        """`label` for numbered rows; an error names the row it comes from."""
        try:
            return self.label([(row[1], row[2] if len(row) == 3 else None) for row in rows])
        except RunnerError:
            for line, messages, *tools in rows:
                try:
                    self.label([(messages, tools[0] if tools else None)])
                except RunnerError as error:
                    raise RefusedError(f"row {line}: {error.message}", error.hint) from error
            raise

    def label(
        self, conversations: Sequence[tuple[Sequence[Message], Tools | None]]
    ) -> list[_Labelled]:
        layouts = [self._lay_out(messages, tools) for messages, tools in conversations]
        tokens = self._tokenize([layout.text for layout in layouts])
        return [
            self._find_trained(layout, row) for layout, row in zip(layouts, tokens, strict=True)
        ]

    def finish(self, row: _Labelled, max_length: int | None) -> Encoded:
        """Cut to `max_length` tokens and write the labels."""
        length = len(row.ids) if max_length is None else min(max_length, len(row.ids))
        ids = row.ids[:length]
        labels = [IGNORED_LABEL] * length
        for turn in row.trained:
            labels[turn.start : min(turn.stop, length)] = ids[turn.start : turn.stop]
        last = row.endings[-1] if row.endings else None
        return Encoded(
            input_ids=ids,
            labels=labels,
            truncated=length < len(row.ids),
            supervised=sum(max(0, min(t.stop, length) - t.start) for t in row.trained),
            prompt_tokens=row.trained[0].start if row.trained else len(row.ids),
            turns=len(row.trained),
            skipped_turns=row.skipped,
            straddled_turns=row.straddled,
            end_of_turn_id=None if last is None else row.ids[last],
            end_of_turn_trained=last is not None and last < length,
        )

    def render(
        self, messages: Sequence[Message], generation_prompt: bool, tools: Tools | None = None
    ) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                for_template(messages),
                tools=tools,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except Exception as error:  # templates raise whatever they like
            raise RefusedError(
                f"{self.template_name} refuses the conversation: {error}",
                "roles: " + " ".join(message["role"] for message in messages[:8]),
            ) from error
        return str(text)

    def _probe_template(self) -> tuple[list[Message] | None, str | None]:
        """A conversation the template takes, and what it writes behind an answer ("<|im_end|>\\n").

        None for what is not known: the template refuses both tries, or hides the answer.
        """
        dummy: list[Message] = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": _PROBE},
        ]
        system: Message = {"role": "system", "content": "Be brief."}
        for messages in (dummy, [system, *dummy]):  # some templates insist on a system turn
            try:
                _, found, suffix = self.render(messages, False).rpartition(_PROBE)
            except RefusedError:
                continue
            return (messages, suffix) if found else (messages, None)
        return None, None

    def _lay_out(self, messages: Sequence[Message], tools: Tools | None) -> _Layout:
        """Render the conversation and find its assistant turns by rendering prefixes of it.

        A turn counts only if its prompt is the start of the text up to its end, and that the start
        of the whole. Templates that rewrite earlier turns (Qwen3 drops their thinking) break this:
        those turns are skipped, for in the whole text they are not what the model would write.
        """
        whole = self.render(messages, False, tools)
        spans: list[_Span] = []
        skipped = 0
        for index, message in enumerate(messages):
            if not is_trained(message):
                continue
            prompt = self.render(messages[:index], True, tools)
            last = index == len(messages) - 1
            shown = whole if last else self.render(messages[: index + 1], False, tools)
            if shown.startswith(prompt) and whole.startswith(shown):
                end = self._content_end(shown, len(prompt), message["content"])
                spans.append(_Span(len(prompt), len(shown), end))
            else:
                skipped += 1
        if not spans and skipped:
            raise RefusedError(
                f"{self.template_name} hides where the assistant's answer begins: its generation "
                "prompt is not the start of the text with the answer, for any turn",
                "a model trained on this text would be asked differently when it is served; "
                "give the tokenizer a template whose add_generation_prompt matches its turns",
            )
        return _Layout(whole, spans, skipped)

    def _content_end(self, shown: str, start: int, content: str) -> int | None:
        suffix = self.turn_suffix
        if suffix is not None and shown.endswith(suffix) and len(shown) - len(suffix) >= start:
            return len(shown) - len(suffix)
        if shown.startswith(content, start):
            return start + len(content)
        return None

    def _tokenize(self, texts: list[str]) -> list[_Tokens]:
        batch = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            _Tokens(list(ids), *_edges(offsets))
            for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
        ]

    def ids_of(self, text: str) -> list[int]:
        batch = self.tokenizer(
            [text], add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return list(batch["input_ids"][0])

    def _find_trained(self, layout: _Layout, tokens: _Tokens) -> _Labelled:
        cuts = [
            span.start
            for span in layout.spans
            if not self._prompt_stands_alone(layout.text, tokens, span.start)
        ]
        if cuts:
            tokens = self._part(layout.text, tokens, cuts)
        trained: list[range] = []
        endings: list[int | None] = []
        straddled = 0
        for span in layout.spans:
            first = _first_token(tokens, span.start)
            if first is None:
                straddled += 1
                first = bisect_left(tokens.starts, span.start)
            ending = self._ending(tokens, first, span)
            if ending is not None:
                stop = ending + 1
            else:
                # no token to stop at: all that is written for the turn, but nothing that reaches
                # into the next one
                stop = first
                while stop < len(tokens.ids) and tokens.ends[stop] <= span.end:
                    stop += 1
            trained.append(range(first, stop))
            endings.append(ending)
        return _Labelled(
            layout.text,
            tokens.ids,
            tokens.starts,
            tokens.ends,
            trained,
            endings,
            layout.skipped,
            straddled,
        )

    def _ending(self, tokens: _Tokens, first: int, span: _Span) -> int | None:
        """Index of the special token that ends the turn: the first one behind the answer.

        Where the answer's end is not known, the last one of the turn, since an answer may hold the
        text of special tokens itself.
        """
        found = None
        for index in range(first, len(tokens.ids)):
            if tokens.starts[index] >= span.end:
                break
            if tokens.ids[index] not in self.special_ids:
                continue
            if span.content_end is None:
                found = index
            elif tokens.ends[index] > span.content_end:
                return index
        return found

    def _prompt_stands_alone(self, text: str, tokens: _Tokens, start: int) -> bool:
        """Whether the tokens before character `start` are those of the text before it alone.

        A token may reach over the place; or the tokenizer looked ahead: GPT-2's rule parts two
        newlines before a word, and joins them at the end of a text. Special tokens part a text for
        good, so only what stands behind the last one is looked at: for most templates the same few
        characters ("assistant\\n") in every row.
        """
        first = _first_token(tokens, start)
        if first is None:
            return False
        behind = first
        while behind and tokens.ids[behind - 1] not in self.special_ids:
            behind -= 1
        tail = text[tokens.ends[behind - 1] if behind else 0 : start]
        alone = self.tail_ids.get(tail)
        if alone is None:
            alone = self.ids_of(tail) if tail else []
            if len(self.tail_ids) < TAILS_KEPT:
                self.tail_ids[tail] = alone
        return tokens.ids[behind:first] == alone

    def _part(self, text: str, tokens: _Tokens, cuts: list[int]) -> _Tokens:
        """Tokenize anew in pieces, parted where an answer begins.

        When a model is served, the prompt is tokenized alone. Where an answer begins with a
        newline, say, one token would hold the prompt's newline and the answer's: a token that
        never follows the prompt in use. Each turn is parted so, as it is while it is written; a
        server that tokenizes the whole history anew may join earlier turns again. Tokenizers whose
        pieces do not add up to the same text (those that put a space before each piece) keep the
        first tokens.
        """
        edges = [0, *cuts, len(text)]
        parts = self._tokenize([text[a:b] for a, b in pairwise(edges)])
        joined = _Tokens([], [], [])
        for offset, part in zip(edges, parts, strict=False):
            joined.ids.extend(part.ids)
            joined.starts.extend(offset + start for start in part.starts)
            joined.ends.extend(offset + end for end in part.ends)
        same = self._decode(joined.ids) == self._decode(tokens.ids)
        return joined if same else tokens

    def _decode(self, ids: list[int]) -> str:
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


def _edges(offsets: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
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


def _first_token(tokens: _Tokens, start: int) -> int | None:
    """Index of the token that begins exactly at character `start`; None if one reaches over it."""
    index = bisect_left(tokens.starts, start)
    if index and tokens.ends[index - 1] > start:
        return None
    if index < len(tokens.ids) and tokens.starts[index] != start:
        return None
    return index


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += sum(len(message["content"]) for message in row[1])
        if len(chunk) == ROWS_AT_ONCE or characters > CHARACTERS_AT_ONCE:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _tokenizer_name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
