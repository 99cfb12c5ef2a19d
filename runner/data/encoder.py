"""Tokenize rendered conversations and find the tokens that carry loss.

Imports the standard library and this package's `layout`, `template`, `control_tokens` and
`token_spans`; the tokenizer is passed in. How the trained characters are found: see `masks`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from runner.common.errors import Problem, RefusedError, SpecError
from runner.data.control_tokens import Rendered, UnsafeTextError
from runner.data.decoded import lost_characters
from runner.data.encoded import IGNORED_LABEL, Encoded, Line, Row
from runner.data.layout import HiddenAnswerError, Layout, Span, Template
from runner.data.messages import Tools
from runner.data.template import TemplateError, Turn, settings_of, tokenizer_name
from runner.data.template_refusals import template_refusal, unsafe_text_refusal
from runner.data.token_spans import TokenSpans, close_gaps, find_first_token
from runner.data.tokenizer_type import Tokenizer

TAILS_KEPT = 64

MAX_PROBLEMS = 5  # rows that one refusal names


@dataclass(frozen=True)
class LabelledRow:
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


class Encoder:
    """A tokenizer with what is asked of its template only once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
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

    def label_rows(self, rows: Sequence[Row]) -> list[LabelledRow]:
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
                    raise unsafe_text_refusal(row[0], str(error)) from None
            raise

    def lay_out(self, line: Line, messages: Sequence[Turn], tools: Tools | None) -> Layout:
        """Raises SpecError for this row."""
        template = self.template
        try:
            layout = template.lay_out(messages, tools)
        except TemplateError as error:
            raise template_refusal(
                line,
                f"{template.name} refuses the conversation: {error}",
                messages,
                template.why_refused(messages, tools),
            ) from error
        except HiddenAnswerError:
            raise template_refusal(
                line,
                f"{template.name} hides where the assistant's answer begins: its generation "
                "prompt is not the start of the text with the answer, for any turn",
                messages,
                "a template whose add_generation_prompt matches its turns: a model trained on this "
                "text would be asked differently when it is served",
            ) from None
        except UnsafeTextError as error:
            raise unsafe_text_refusal(line, str(error)) from None
        if layout.rendered.foreign and settings_of(self.tokenizer).special_tokens == "refuse":
            names = ", ".join(dict.fromkeys(layout.rendered.names))
            raise unsafe_text_refusal(line, f"special tokens in its text: {names}")
        return layout

    def label(self, layouts: Sequence[Layout]) -> list[LabelledRow]:
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
            raise template_refusal(
                "the prompt",
                f"{template.name} refuses the conversation: {error}",
                messages,
                template.why_refused(messages, tools),
            ) from error
        except UnsafeTextError as error:
            raise unsafe_text_refusal("the prompt", str(error)) from None
        return tokens.ids

    def finish(self, row: LabelledRow, max_length: int | None) -> Encoded:
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

    def _tokenize(self, texts: Sequence[Rendered]) -> list[TokenSpans]:
        told = self.template.control.tokenize(texts)
        return [TokenSpans(ids, *close_gaps(offsets)) for ids, offsets in told]

    def _find_trained(
        self, layout: Layout, tokens: TokenSpans, characters: int, lost: int
    ) -> LabelledRow:
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
            first = find_first_token(tokens, span.start)
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
        return LabelledRow(
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

    def _ending(self, tokens: TokenSpans, first: int, span: Span) -> int | None:
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

    def _prompt_stands_alone(self, text: Rendered, tokens: TokenSpans, start: int) -> bool:
        """Whether the tokens before character `start` are those of the text before it alone.

        A token may reach over the place; or the tokenizer looked ahead: GPT-2's rule parts two
        newlines before a word, and joins them at the end of a text. Special tokens part a text for
        good, so only what stands behind the last one is looked at: for most templates the same few
        characters ("assistant\\n") in every row.
        """
        first = find_first_token(tokens, start)
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

    def _part(self, text: Rendered, tokens: TokenSpans, cuts: list[int]) -> TokenSpans:
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
        joined = TokenSpans([], [], [])
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
