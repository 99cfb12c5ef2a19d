"""Turn rows of the known data formats into conversations; refuse what does not fit.

Imports the standard library, `runner.common.errors` and this package's modules about rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from runner.common.errors import Problem, SpecError
from runner.data.formats import IMAGE_MARK, NO_IMAGES, Conversation, Format, FormatOptions
from runner.data.marks import Kind, kind_of, marks_in, row_is_trained
from runner.data.messages import REASONING_KEYS, Message, strings_in
from runner.data.placeholders import fill_message
from runner.data.read import shorten
from runner.data.row_formats import read_alpaca, read_data_juicer, read_text_label, read_turns
from runner.data.row_images import MEDIA, MEDIA_KEYS, images_of
from runner.data.row_notes import RowNotes
from runner.data.row_problems import RowProblems
from runner.data.tool_calls import TOOL_KEYS, reasoning_of, tools_of, without_padding

MAX_PROBLEMS = 5

_SURROGATE = re.compile("[\ud800-\udfff]")

_TOOLS = frozenset(TOOL_KEYS)

_ANSWER_FORMATS = ("alpaca", "text_label", "data_juicer")
"""Formats whose rows have one answer of their own, with what is thought before it beside it."""

_COMMON_KEYS = (*MEDIA_KEYS, "system")

_TOOL_KEYS_READ: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("messages", "conversations", "alpaca"), TOOL_KEYS),
        # a column called "functions" is what these rows are about
        **dict.fromkeys(("text_label", "data_juicer"), ("tools",)),
    }
)

_KEYS_READ: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "messages": frozenset({"messages", *TOOL_KEYS, *_COMMON_KEYS}),
        "conversations": frozenset({"conversations", *TOOL_KEYS, *_COMMON_KEYS}),
        "alpaca": frozenset(
            {"instruction", "input", "output", "history", "tool_calls", "function_call"}
            | {*TOOL_KEYS, *_COMMON_KEYS, *REASONING_KEYS}
        ),
        "text_label": frozenset({"text", "label", "tools", *_COMMON_KEYS, *REASONING_KEYS}),
        "data_juicer": frozenset({"id", "text", "tools", *_COMMON_KEYS, *REASONING_KEYS}),
    }
)


class Converter:
    """Turns rows of one source into conversations.

    `source` names the source in errors ("file" of "file:line"), `field` the job's field. Raises
    SpecError where `options` can't be used with the format.
    """

    def __init__(
        self,
        format: Format,  # noqa: A002 - the word the job file uses
        options: FormatOptions,
        *,
        source: str = "data",
        field: str = "data.train",
    ) -> None:
        self._format = format
        self._options = options
        self._problems = RowProblems(source, field)
        self._is_table = source.endswith(".parquet") or source.startswith(("hub:", "modelscope:"))
        self.notes = RowNotes(options.ignored, options.read_otherwise)
        _check_options(format, options, source)

    def is_empty(self, row: Mapping[str, object], conversation: Conversation) -> bool:
        """Whether nothing is asked or nothing is answered somewhere in the row.

        There is nothing to learn from it: silence as an answer would train the end of the turn
        alone. A text_label row's own text counts, not the prompt that is put around it. A tool may
        answer nothing, and an answer that calls one says something by that.
        """
        if self._format == "text_label" and is_blank(str(row.get("text", ""))):
            return True
        return any(
            message["role"] not in ("system", "tool")
            and is_blank(message["content"])
            and "tool_calls" not in message
            for message in conversation.messages
        )

    def convert(self, number: int, row: Mapping[str, object]) -> Conversation:
        """The row at line or row `number`: an optional system turn, then user and assistant.

        A turn may be empty here, see `is_empty`. Raises SpecError with one Problem where
        the row lacks what its format asks for, has turns out of order or no assistant turn, tool
        calls or marks that can't be read, a placeholder not filled, or images that don't fit their
        marks.
        """
        problems, options, notes = self._problems, self._options, self.notes
        problems.number = number
        notes.count_unused(row, _KEYS_READ[self._format])
        row = notes.without_ignored(row)
        if self._is_table:
            row, padded = without_padding(row, self._format)
            notes.padded += padded
        tools = None
        if not _TOOLS.isdisjoint(row):
            tools = tools_of(row, problems, _TOOL_KEYS_READ[self._format])
        images = NO_IMAGES if MEDIA.isdisjoint(row) else images_of(row, options, problems)
        if self._format == "alpaca":
            messages = read_alpaca(row, problems)
        elif self._format == "text_label":
            messages = read_text_label(row, options, problems)
        elif self._format == "data_juicer":
            messages = read_data_juicer(row, images, options, problems)
        else:
            messages = read_turns(row, self._format, problems, notes)
        if self._format in _ANSWER_FORMATS:
            reasoning = reasoning_of(row, "", problems)
            if reasoning is not None:
                messages[-1]["reasoning_content"] = reasoning
        _place_system(messages, row, options, problems)
        _apply_row_marks(messages, row, notes, problems)
        marks = 0
        for message in messages:
            if options.placeholders:
                fill_message(message, options.placeholders, problems)
            content = message["content"]
            if not content.isascii() or len(message) > 2:
                _require_characters(message, problems)
            marks += content.count(IMAGE_MARK)
        if tools is not None:
            _require_characters(tools, problems)
        if options.vision and marks != len(images):
            problems.fail(
                "images",
                f"{marks} {IMAGE_MARK} in the text for {len(images)} images",
                list(images),
                f"as many {IMAGE_MARK} as images",
            )
        return Conversation(messages, images, tools)

    def count(self, conversation: Conversation) -> None:
        """Count what a row that is taken holds, for the report."""
        notes = self.notes
        notes.tools += conversation.tools is not None
        for message in conversation.messages:
            if len(message) > 2:
                notes.reasoning += "reasoning_content" in message
                notes.tool_calls += "tool_calls" in message
                notes.untrained_turns += not message.get("trained", True)


def convert_rows(
    rows: Iterable[tuple[int, Mapping[str, object]]], converter: Converter
) -> Iterator[tuple[int, Mapping[str, object], Conversation | None]]:
    """(number, row, conversation) for each row; None for an empty one (Converter.is_empty).

    Streams. Bad rows are collected, and the rest is still looked at, so that one go names up to
    MAX_PROBLEMS of them: then, or at the end, SpecError is raised with them all.
    """
    problems: list[Problem] = []
    for number, row in rows:
        try:
            conversation = converter.convert(number, row)
        except SpecError as error:
            problems.extend(error.problems)
            if len(problems) >= MAX_PROBLEMS:
                break
            continue
        yield number, row, None if converter.is_empty(row, conversation) else conversation
    if problems:
        raise SpecError(problems)


def is_blank(text: str) -> bool:
    return not text or text.isspace()


def _check_options(name: Format, options: FormatOptions, where: str) -> None:
    if name == "text_label" and "{text}" not in options.prompt:
        raise SpecError(
            [
                Problem(
                    where,
                    "data.prompt",
                    "has no {text}: every row would ask the same",
                    shorten(options.prompt),
                    "a prompt with {text} where the row's text goes",
                )
            ]
        )
    blank = [key for key, answer in (options.labels or {}).items() if is_blank(answer)]
    if name == "text_label" and blank:
        raise SpecError(
            [
                Problem(
                    where,
                    f"data.labels.{blank[0]}",
                    "is an empty answer: all rows of this label would be left out",
                    repr((options.labels or {})[blank[0]]),
                    "the text that the model is to answer for this label",
                )
            ]
        )


def _place_system(
    messages: list[Message],
    row: Mapping[str, object],
    options: FormatOptions,
    problems: RowProblems,
) -> None:
    """Put the system turn first: the row's turn, else the row's `system` key, else the option."""
    if messages[0]["role"] == "system":
        return
    system = options.system
    if row.get("system"):
        system = problems.text(row, "system", "system")
    if system:
        messages.insert(0, {"role": "system", "content": system})


def _apply_row_marks(
    messages: Sequence[Message], row: Mapping[str, object], notes: RowNotes, problems: RowProblems
) -> None:
    """Put what the row's own marks say into its answers; drop marks that say what holds anyway."""
    marks = marks_in(row, notes.read_otherwise)
    if marks:
        trained, last_only = row_is_trained(marks, problems)
        for key in marks:
            if trained is not None and kind_of(key) in (Kind.TRAIN, Kind.SKIP):
                notes.count_mark(key, trained)
            elif kind_of(key) is Kind.LAST:
                notes.count_mark(key, not last_only)
        answers = [message for message in messages if message["role"] == "assistant"]
        for message in answers if trained is False else answers[:-1] if last_only else []:
            if message.get("trained"):
                problems.fail(
                    next(iter(marks)),
                    "says otherwise than a turn of the same row",
                    next(iter(marks.values())),
                    "marks that agree",
                )
            message["trained"] = False
    for message in messages:
        if message.get("trained"):
            del message["trained"]


def _require_characters(value: object, problems: RowProblems) -> None:
    """Refuse halves of surrogate pairs, which JSON can hold and UTF-8 can't."""
    for text in strings_in(value):
        if not text.isascii() and (lone := _SURROGATE.search(text)):
            problems.fail(
                "content",
                f"half of a surrogate pair (U+{ord(lone[0]):04X}), which is no character",
                text,
                "text that can be written as UTF-8",
            )
