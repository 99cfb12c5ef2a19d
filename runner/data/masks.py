"""Token ids and labels of conversations: only what the assistant says carries loss.

Imports the standard library and this package's `layout`, `template` and `control_tokens`; the
tokenizer is passed in.

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

from runner.common.errors import Problem, RefusedError, SpecError
from runner.data.control_tokens import Rendered, UnsafeTextError
from runner.data.decoded import lost_characters
from runner.data.layout import HiddenAnswerError, Layout, Span, Template
from runner.data.messages import Tools
from runner.data.template import TemplateError, Turn, settings_of, tokenizer_name
from runner.data.template import template_name as template_name

# What cross-entropy ignores, in torch and everywhere downstream of it.
IGNORED_LABEL = -100

# Where a row comes from: its line or row number, with its file where there is more than one.
Line = int | str

Row = tuple[Line, Sequence[Turn]] | tuple[Line, Sequence[Turn], Tools | None]

ROWS_AT_ONCE = 512
CHARACTERS_AT_ONCE = 2_000_000
TAILS_KEPT = 64

MAX_PROBLEMS = 5  # rows that one refusal names

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


def encode(
    tokenizer: Any, messages: Sequence[Turn], max_length: int | None, tools: Tools | None = None
) -> Encoded:
    """One conversation's ids and labels; `max_length` (tokens) cuts the end, None cuts nothing.

    Messages have the keys that `apply_chat_template` takes, and `trained: False` for an assistant
    turn that carries no loss; `tools` are the row's tool definitions.

    Raises RefusedError where the tokenizer has no chat template or gives no offsets; SpecError
    where its template refuses the conversation, no assistant turn can be found in what it renders,
    or a special token in the row's text can't be encoded as text, or is not to be.
    """
    encoder = _Encoder(tokenizer)
    (labelled,) = encoder.label_rows([("the row", messages, tools)])
    return encoder.finish(labelled, max_length)


def encode_rows(tokenizer: Any, rows: Iterable[Row], max_length: int | None) -> Iterator[Encoded]:
    """`encode` for each of (line, messages) or (line, messages, tools), in order.

    Streams, ROWS_AT_ONCE in memory at most. A row that truncation leaves without a label comes too,
    with `supervised` 0. Raises as `encode` does, naming the line.
    """
    encoder = _Encoder(tokenizer)
    for chunk in _chunks(rows):
        for labelled in encoder.label_rows(chunk):
            yield encoder.finish(labelled, max_length)


def prompt_ids(
    tokenizer: Any, prompts: Sequence[Sequence[Turn]], tools: Sequence[Tools | None] | None = None
) -> list[list[int]]:
    """Token ids of each conversation up to where the assistant answers, as training has them.

    Raises SpecError where the template refuses one.
    """
    encoder = _Encoder(tokenizer)
    defined = [None] * len(prompts) if tools is None else list(tools)
    return [
        encoder.prompt_ids(messages, given)
        for messages, given in zip(prompts, defined, strict=True)
    ]


def special_texts(tokenizer: Any, text: str) -> list[str]:
    """The special tokens that a text spells out, in order."""
    pattern = _Encoder(tokenizer).template.control.pattern(own_turn=False)
    return pattern.findall(text)


def segments(
    tokenizer: Any, messages: Sequence[Turn], max_length: int | None, tools: Tools | None = None
) -> tuple[Encoded, list[Segment]]:
    """The row, and the text its tokens stand for, in alternating trained and untrained stretches.

    Joined, the segments are the rendered conversation, up to where `max_length` cuts it. They are
    cut from the rendered text by the tokens' offsets: tokens of byte-level vocabularies hold parts
    of characters, and decoding them one by one would show replacement marks.
    """
    encoder = _Encoder(tokenizer)
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


def end_of_turn_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that should stop generation: eos, then what the chat template ends a turn with."""
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    encoder = _Encoder(tokenizer)
    if encoder.template.dummy is not None:
        (labelled,) = encoder.label([encoder.lay_out("the probe", encoder.template.dummy, None)])
        ending = encoder.finish(labelled, None).end_of_turn_id
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
    name = tokenizer_name(tokenizer)
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
class _Tokens:
    """Token ids with their characters: starts[i] to ends[i] is what ids[i] stands for."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


@dataclass(frozen=True)
class _Labelled:
    layout: Layout
    ids: list[int]
    starts: list[int]
    ends: list[int]
    trained: list[range]  # token ranges, one for each trained turn
    endings: list[int | None]  # index of each trained turn's end-of-turn token
    straddled: int
    characters: int
    lost_characters: int

    @property
    def text(self) -> str:
        return self.layout.rendered.text


class _Encoder:
    """A tokenizer with what is asked of its template only once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise RefusedError(
                f"the tokenizer {tokenizer_name(tokenizer)} has no chat template",
                "ensure_chat_template installs a plain one",
            )
        if not tokenizer.is_fast:
            raise RefusedError(
                f"the tokenizer {tokenizer_name(tokenizer)} gives no character offsets, which "
                "the loss mask is built from",
                "use its fast version (a tokenizer.json)",
            )
        self.template = Template(tokenizer)
        control = self.template.control
        kept = tokenizer.convert_tokens_to_ids(list(control.kept))
        # an unknown character is no end of a turn
        self.special_ids = frozenset([*control.ids.values(), *kept]) - {tokenizer.unk_token_id}
        self.tail_ids: dict[Rendered, list[int]] = {}

    def label_rows(self, rows: Sequence[Row]) -> list[_Labelled]:
        """Each row's tokens. Raises SpecError that names up to MAX_PROBLEMS rows."""
        layouts: list[Layout] = []
        problems: list[Problem] = []
        for line, messages, *tools in rows:
            try:
                layouts.append(self.lay_out(line, messages, tools[0] if tools else None))
            except SpecError as error:
                problems += error.problems
                if len(problems) >= MAX_PROBLEMS:
                    break
        if problems:
            raise SpecError(problems)
        try:
            return self.label(layouts)
        except UnsafeTextError:
            for row, layout in zip(rows, layouts, strict=True):
                try:
                    self.label([layout])
                except UnsafeTextError as error:
                    raise _unsafe(row[0], str(error)) from None
            raise

    def lay_out(self, line: Line, messages: Sequence[Turn], tools: Tools | None) -> Layout:
        """Raises SpecError for this row."""
        template = self.template
        try:
            layout = template.lay_out(messages, tools)
        except TemplateError as error:
            raise _refused(
                line,
                f"{template.name} refuses the conversation: {error}",
                messages,
                template.why_refused(messages, tools),
            ) from error
        except HiddenAnswerError:
            raise _refused(
                line,
                f"{template.name} hides where the assistant's answer begins: its generation "
                "prompt is not the start of the text with the answer, for any turn",
                messages,
                "a template whose add_generation_prompt matches its turns: a model trained on this "
                "text would be asked differently when it is served",
            ) from None
        except UnsafeTextError as error:
            raise _unsafe(line, str(error)) from None
        if layout.rendered.foreign and settings_of(self.tokenizer).special_tokens == "refuse":
            names = ", ".join(dict.fromkeys(layout.rendered.names))
            raise _unsafe(line, f"special tokens in its text: {names}")
        return layout

    def label(self, layouts: Sequence[Layout]) -> list[_Labelled]:
        tokens = self._tokenize([layout.rendered for layout in layouts])
        lost = lost_characters(
            self.tokenizer,
            [layout.rendered.text for layout in layouts],
            [row.ids for row in tokens],
        )
        return [
            self._find_trained(layout, row, *counted)
            for layout, row, counted in zip(layouts, tokens, lost, strict=True)
        ]

    def prompt_ids(self, messages: Sequence[Turn], tools: Tools | None) -> list[int]:
        """Raises SpecError where the template refuses, or the text can't be encoded as text."""
        template = self.template
        try:
            rendered = template.render(messages, tools, generation_prompt=True)
            (tokens,) = self._tokenize([rendered])
        except TemplateError as error:
            raise _refused(
                "the prompt",
                f"{template.name} refuses the conversation: {error}",
                messages,
                template.why_refused(messages, tools),
            ) from error
        except UnsafeTextError as error:
            raise _unsafe("the prompt", str(error)) from None
        return tokens.ids

    def finish(self, row: _Labelled, max_length: int | None) -> Encoded:
        """Cut to `max_length` tokens and write the labels."""
        length = len(row.ids) if max_length is None else min(max_length, len(row.ids))
        ids = row.ids[:length]
        labels = [IGNORED_LABEL] * length
        for turn in row.trained:
            labels[turn.start : min(turn.stop, length)] = ids[turn.start : turn.stop]
        # a row whose marks leave nothing trained has neither
        last = row.endings[-1] if row.endings else None
        return Encoded(
            input_ids=ids,
            labels=labels,
            truncated=length < len(row.ids),
            supervised=sum(max(0, min(t.stop, length) - t.start) for t in row.trained),
            prompt_tokens=row.trained[0].start if row.trained else len(row.ids),
            turns=len(row.trained),
            skipped_turns=row.layout.skipped,
            straddled_turns=row.straddled,
            end_of_turn_id=None if last is None else row.ids[last],
            end_of_turn_trained=last is not None and last < length,
            unended_turns=sum(
                not span.ends and ending is None
                for span, ending in zip(row.layout.spans, row.endings, strict=True)
            ),
            reread_turns=row.layout.reread,
            opened_turns=row.layout.opened,
            empty_think=row.layout.empty_think,
            special_texts=tuple(row.layout.rendered.names),
            left_out=row.layout.left_out,
            characters=row.characters,
            lost_characters=row.lost_characters,
        )

    def _tokenize(self, texts: Sequence[Rendered]) -> list[_Tokens]:
        told = self.template.control.tokenize(texts)
        return [_Tokens(ids, *_edges(offsets)) for ids, offsets in told]

    def _find_trained(
        self, layout: Layout, tokens: _Tokens, characters: int, lost: int
    ) -> _Labelled:
        cuts = [
            span.start
            for span in layout.spans
            if not self._prompt_stands_alone(layout.rendered, tokens, span.start)
        ]
        if cuts:
            tokens = self._part(layout.rendered, tokens, cuts)
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
            layout,
            tokens.ids,
            tokens.starts,
            tokens.ends,
            trained,
            endings,
            straddled,
            characters,
            lost,
        )

    def _ending(self, tokens: _Tokens, first: int, span: Span) -> int | None:
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
                return index if tokens.ends[index] <= span.end else None
        return found

    def _prompt_stands_alone(self, text: Rendered, tokens: _Tokens, start: int) -> bool:
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
        tail = text.part(tokens.ends[behind - 1] if behind else 0, start)
        alone = self.tail_ids.get(tail)
        if alone is None:
            alone = self._tokenize([tail])[0].ids if tail.text else []
            if len(self.tail_ids) < TAILS_KEPT:
                self.tail_ids[tail] = alone
        return tokens.ids[behind:first] == alone

    def _part(self, text: Rendered, tokens: _Tokens, cuts: list[int]) -> _Tokens:
        """Tokenize anew in pieces, parted where an answer begins.

        When a model is served, the prompt is tokenized alone. Where an answer begins with a
        newline, say, one token would hold the prompt's newline and the answer's: a token that
        never follows the prompt in use. Each turn is parted so, as it is while it is written; a
        server that tokenizes the whole history anew may join earlier turns again. Tokenizers whose
        pieces do not add up to the same text (those that put a space before each piece) keep the
        first tokens.
        """
        edges = [0, *cuts, len(text.text)]
        parts = self._tokenize([text.part(a, b) for a, b in pairwise(edges)])
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


def _refused(line: Line, problem: str, messages: Sequence[Turn], way_out: str) -> SpecError:
    roles = "roles: " + " ".join(str(message["role"]) for message in messages[:8])
    return SpecError([Problem(_where(line), "data.train", problem, roles, way_out)])


def _unsafe(line: Line, problem: str) -> SpecError:
    return SpecError(
        [
            Problem(
                _where(line),
                "data.special_tokens",
                problem,
                expected="a row without; data.special_tokens: text encodes them as text where the "
                "tokenizer can, allow leaves them what they are",
            )
        ]
    )


def _where(line: Line) -> str:
    return line if isinstance(line, str) else f"row {line}"


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
