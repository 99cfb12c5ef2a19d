"""Turn rows of the known data formats into chat messages; refuse what does not fit.

Imports the standard library, `runner.common.errors` and this package's `read`, `turns`,
`tool_calls` and `marks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from runner.common.errors import Problem, SpecError, nearest
from runner.data.marks import Kind, kind_of, marks_in, row_is_trained
from runner.data.messages import REASONING_KEYS, Tools, is_trained, strings_in
from runner.data.messages import Message as Message
from runner.data.read import shorten
from runner.data.row_notes import RowNotes
from runner.data.row_problems import RowProblems
from runner.data.tool_calls import TOOL_KEYS, calls_of, reasoning_of, tools_of, without_padding
from runner.data.turns import messages_of

Format = Literal["messages", "conversations", "alpaca", "text_label", "data_juicer"]
FORMATS: tuple[Format, ...] = get_args(Format)

# A format fits a row that has all of these keys.
REQUIRED_KEYS: Mapping[Format, tuple[str, ...]] = MappingProxyType(
    {
        "messages": ("messages",),
        "conversations": ("conversations",),
        "alpaca": ("instruction", "output"),
        "text_label": ("text", "label"),
        "data_juicer": ("text", "images"),
    }
)

SAMPLE_ROWS = 100
MAX_PROBLEMS = 5

# What stands in a text for an image, in the order of the row's images.
IMAGE_MARK = "<image>"
_IMAGE_KEYS = ("image", "images")
_MEDIA_KEYS = (*_IMAGE_KEYS, "video", "videos", "audio", "audios")
_MEDIA = frozenset(_MEDIA_KEYS)
_NO_IMAGES: tuple[str, ...] = ()
_DJ_IMAGE, _DJ_END = "<__dj__image>", "<|__dj__eoc|>"
_DJ_OTHER = re.compile(r"<\|?__dj__\w+\|?>")
# Asked of an image whose own question is not known; which one depends on the row's id alone.
GENERAL_QUESTIONS = (
    "What is in the picture?",
    "Describe the image in a few words.",
    "Give a short description of this image.",
    "What does this image show?",
    "Write a caption for the picture.",
    "Sum up what can be seen in the image.",
)
_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"-?[0-9]+\.0+")
_TOOLS = frozenset(TOOL_KEYS)
_ANSWER_FORMATS = ("alpaca", "text_label", "data_juicer")
"""Formats whose rows have one answer of their own, with what is thought before it beside it."""
_COMMON_KEYS = (*_MEDIA_KEYS, "system")
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


@dataclass(frozen=True)
class FormatOptions:
    """What a job says about its rows beyond their format."""

    # The system turn of rows that bring none of their own; None: no system turn is added.
    system: str | None = None
    # text_label: the user turn; every {text} in it is replaced by the row's text.
    prompt: str = "{text}"
    # text_label: what to answer for each label, keyed by the label as text. None: labels must be
    # strings already and are the answers.
    labels: Mapping[str, str] | None = None
    # What replaces {{name}} in contents. Empty: contents are left as they are.
    placeholders: Mapping[str, str] = field(default_factory=dict)
    # Whether the model takes images; without, rows that hold any are refused.
    vision: bool = False
    # data_juicer: the user turn for each row's id. None: one of GENERAL_QUESTIONS is asked.
    questions: Mapping[str, str] | None = None
    # Keys of rows and of their turns that are left unread, whatever they are called.
    ignored: frozenset[str] = frozenset()
    # Keys of rows that are read beside the format's own (data.split.stratify).
    read_otherwise: frozenset[str] = frozenset()


class Conversation(NamedTuple):
    """A row as messages, its images as the row writes them, and its tool definitions."""

    messages: list[Message]
    images: tuple[str, ...] = _NO_IMAGES
    tools: Tools | None = None


@dataclass(frozen=True)
class Detection:
    """Which format the sampled rows have, and why that was concluded."""

    format: Format
    because: str  # a short sentence for the user
    # Keys that hold images, video or audio in some sampled row, which not every model takes.
    media: tuple[str, ...] = ()


def detect(
    rows_sample: Sequence[Mapping[str, Any]], where: str = "data", field: str = "data.format"
) -> Detection:
    """The format of the first SAMPLE_ROWS rows, told by their keys alone.

    Raises SpecError where no format fits every row, or more than one does: the keys seen and the
    nearest format are in it. `where` names the source, `field` what the user should set.
    """
    rows = rows_sample[:SAMPLE_ROWS]
    if not rows:
        raise SpecError([Problem(where, field, "no rows to tell the format from")])
    seen: dict[str, int] = {}
    for row in rows:
        for key in row:
            seen[key] = seen.get(key, 0) + 1
    keys_shown = "keys seen: " + shorten(
        ", ".join(
            k if n == len(rows) else f"{k} ({n} of {len(rows)} rows)" for k, n in seen.items()
        )
        or "none",
        300,
    )
    fitting = [name for name in FORMATS if all(_fits(row, name) for row in rows)]
    if len(fitting) > 1:
        raise SpecError(
            [
                Problem(
                    where,
                    field,
                    f"more than one format fits: {' and '.join(fitting)}",
                    keys_shown,
                    f"{field} set to the one that is meant",
                )
            ]
        )
    if not fitting:
        partly = max(FORMATS, key=lambda name: sum(_fits(row, name) for row in rows))
        count = sum(_fits(row, partly) for row in rows)
        raise SpecError(
            [
                Problem(
                    where,
                    field,
                    f"only {count} of the first {len(rows)} rows fit {partly}"
                    if count
                    else "no known format fits the rows",
                    keys_shown,
                    "; ".join(f"{n} ({', '.join(REQUIRED_KEYS[n])})" for n in FORMATS),
                    partly if count else _nearest_format(seen),
                )
            ]
        )
    name = fitting[0]
    subject = "every row has" if len(rows) < SAMPLE_ROWS else f"the first {len(rows)} rows have"
    media = tuple(key for key in _MEDIA_KEYS if any(row.get(key) for row in rows))
    return Detection(name, f"{subject} {' and '.join(REQUIRED_KEYS[name])}", media)


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

    def is_empty(self, row: Mapping[str, Any], conversation: Conversation) -> bool:
        """Whether nothing is asked or nothing is answered somewhere in the row.

        There is nothing to learn from it: silence as an answer would train the end of the turn
        alone. A text_label row's own text counts, not the prompt that is put around it. A tool may
        answer nothing, and an answer that calls one says something by that.
        """
        if self._format == "text_label" and _is_blank(str(row.get("text", ""))):
            return True
        return any(
            message["role"] not in ("system", "tool")
            and _is_blank(message["content"])
            and "tool_calls" not in message
            for message in conversation.messages
        )

    def convert(self, number: int, row: Mapping[str, Any]) -> Conversation:
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
        images = _NO_IMAGES if _MEDIA.isdisjoint(row) else _images(row, options, problems)
        if self._format == "alpaca":
            messages = _from_alpaca(row, problems)
        elif self._format == "text_label":
            messages = _from_text_label(row, options, problems)
        elif self._format == "data_juicer":
            messages = _from_data_juicer(row, images, options, problems)
        else:
            messages = _from_turns(row, self._format, problems, notes)
        if self._format in _ANSWER_FORMATS:
            reasoning = reasoning_of(row, "", problems)
            if reasoning is not None:
                messages[-1]["reasoning_content"] = reasoning
        _place_system(messages, row, options, problems)
        _apply_row_marks(messages, row, notes, problems)
        marks = 0
        for message in messages:
            if options.placeholders:
                _fill_message(message, options.placeholders, problems)
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


def has_answer(conversation: Conversation) -> bool:
    """Whether the marks of a row leave any of its answers trained."""
    return any(is_trained(message) for message in conversation.messages)


def convert_rows(
    rows: Iterable[tuple[int, Mapping[str, Any]]], converter: Converter
) -> Iterator[tuple[int, Mapping[str, Any], Conversation | None]]:
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


def _is_blank(text: str) -> bool:
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
    blank = [key for key, answer in (options.labels or {}).items() if _is_blank(answer)]
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


def _fits(row: Mapping[str, Any], name: Format) -> bool:
    return all(key in row for key in REQUIRED_KEYS[name])


def _nearest_format(seen: Iterable[str]) -> str | None:
    """The format most of whose keys were seen, or whose key is spelled most like one seen."""
    keys = list(seen)
    shared = {name: sum(key in keys for key in REQUIRED_KEYS[name]) for name in FORMATS}
    best = max(FORMATS, key=lambda name: shared[name])
    if shared[best]:
        missing = [key for key in REQUIRED_KEYS[best] if key not in keys]
        return f"{best}, which also needs {' and '.join(missing)}"
    owners = {key: name for name in FORMATS for key in REQUIRED_KEYS[name]}
    for key in keys:
        meant = nearest(key, owners)
        if meant:
            return f"{owners[meant]}, if {key} is its {meant}"
    return None


def _from_turns(
    row: Mapping[str, Any], key: Format, problems: RowProblems, notes: RowNotes
) -> list[Message]:
    if key not in row:
        problems.fail(key, "is missing", sorted(row)[:8], "a list of turns", nearest(key, row))
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        problems.fail(key, "is not a list of turns", turns, "a list with at least two turns")
    return messages_of(turns, key, problems, notes)


def _from_alpaca(row: Mapping[str, Any], problems: RowProblems) -> list[Message]:
    messages: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        problems.fail("history", "is not a list", history, "a list of [question, answer] pairs")
    for index, pair in enumerate(history):
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            problems.fail(f"history[{index}]", "is not a pair", pair, "[question, answer], strings")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    prompt = problems.text(row, "instruction", "instruction")
    # parquet and CSV writers turn an absent input into null or ""
    if row.get("input") is not None and (extra := problems.text(row, "input", "input")).strip():
        prompt = f"{prompt}\n\n{extra}" if prompt.strip() else extra
    messages.append({"role": "user", "content": prompt})
    calls = calls_of(row, "row", problems)
    silent = calls and row.get("output") is None
    output = "" if silent else problems.text(row, "output", "output")
    answer: Message = {"role": "assistant", "content": output}
    if calls:
        answer["tool_calls"] = calls
    messages.append(answer)
    return messages


def _from_text_label(
    row: Mapping[str, Any], options: FormatOptions, problems: RowProblems
) -> list[Message]:
    text = problems.text(row, "text", "text")
    if "label" not in row:
        problems.fail("label", "is missing", sorted(row)[:8], "a label", nearest("label", row))
    label = row["label"]
    if options.labels is None:
        if not isinstance(label, str):
            problems.fail(
                "label",
                "is not a string, and data.labels says no answer for it",
                label,
                'a string, or data.labels such as {"0": "negative", "1": "positive"}',
            )
        answer = label
    else:
        key = _label_key(label, options.labels)
        if key is None:
            problems.fail(
                "label",
                "has no answer in data.labels",
                label,
                "one of " + shorten(", ".join(options.labels), 200),
                nearest(str(label), options.labels),
            )
        answer = options.labels[key]
    return [
        {"role": "user", "content": options.prompt.replace("{text}", text)},
        {"role": "assistant", "content": answer},
    ]


def _images(
    row: Mapping[str, Any], options: FormatOptions, problems: RowProblems
) -> tuple[str, ...]:
    """The row's image paths as it writes them; `image` is one path or a list, `images` a list."""
    for key in _MEDIA_KEYS:
        if not row.get(key):
            continue
        if key not in _IMAGE_KEYS:
            problems.fail(key, "video and audio are not supported", row[key], "text and images")
        if not options.vision:
            problems.fail(
                key,
                "a text model can't read images",
                row[key],
                "give vision.model, or rows without",
            )
    if row.get("image") and row.get("images"):
        problems.fail("images", "is given beside image", row["images"], "one of image and images")
    paths = image_names(row)
    if paths is None:
        key = "image" if row.get("image") else "images"
        problems.fail(key, "is not a list of image paths", row[key], "paths of image files")
    return paths


def image_names(row: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The images of a row as it names them; None where what it holds is no list of names."""
    key = "image" if row.get("image") else "images"
    held = row.get(key) or []
    paths = [held] if key == "image" and isinstance(held, str) else held
    if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
        return None
    return tuple(paths)


def _from_data_juicer(
    row: Mapping[str, Any],
    images: tuple[str, ...],
    options: FormatOptions,
    problems: RowProblems,
) -> list[Message]:
    """A caption with data-juicer's tokens as an answer to a question about the image."""
    text = problems.text(row, "text", "text")
    if len(images) != 1 or text.count(_DJ_IMAGE) != 1:
        problems.fail(
            "images",
            f"{len(images)} images and {text.count(_DJ_IMAGE)} {_DJ_IMAGE} in the text",
            text,
            "one of each: rows with more can't be turned into a question and an answer",
        )
    caption, _, behind = text.replace(_DJ_IMAGE, "").partition(_DJ_END)
    if behind.strip():
        problems.fail("text", f"continues after {_DJ_END}", text, "one part for the one image")
    if other := _DJ_OTHER.search(caption):
        problems.fail("text", f"holds {other[0]}", text, f"{_DJ_IMAGE} and {_DJ_END} only")
    identifier = row.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        problems.fail(
            "id", "is not an id", identifier, "a string or a number, to choose a question"
        )
    name = str(identifier)
    if options.questions is None:
        drawn = int.from_bytes(blake2b(name.encode("utf-8", "replace"), digest_size=8).digest())
        question = f"{IMAGE_MARK}\n{GENERAL_QUESTIONS[drawn % len(GENERAL_QUESTIONS)]}"
    elif name in options.questions:
        question = options.questions[name]
    else:
        problems.fail(
            "id",
            "has no question in data.questions",
            name,
            "an id of that file",
            nearest(name, islice(options.questions, 10_000)),
        )
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": caption.strip()},
    ]


def _place_system(
    messages: list[Message], row: Mapping[str, Any], options: FormatOptions, problems: RowProblems
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
    messages: Sequence[Message], row: Mapping[str, Any], notes: RowNotes, problems: RowProblems
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


def _label_key(label: object, labels: Mapping[str, str]) -> str | None:
    """The key of `labels` that is this label: the same text, or the same value written otherwise.

    true, True and TRUE are one value, as are 1 and 1.0: JSON, YAML, CSV and Parquet write them so.
    """
    if not isinstance(label, bool) and str(label) in labels:
        return str(label)
    wanted = label_text(label)
    alike = [key for key in labels if label_text(key) == wanted]
    return alike[0] if len(alike) == 1 else None


def label_text(label: object) -> str:
    """A label as text, the same for all ways to write true, false or a whole number."""
    text = str(label).strip() if not isinstance(label, str) else label
    if text.lower() in ("true", "false"):
        return text.lower()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


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


def _fill_message(message: Message, placeholders: Mapping[str, str], problems: RowProblems) -> None:
    message["content"] = _fill(message["content"], placeholders, problems)
    if "reasoning_content" in message:
        message["reasoning_content"] = _fill(message["reasoning_content"], placeholders, problems)
    if "tool_calls" in message:
        message["tool_calls"] = [
            {**call, "function": _filled(call["function"], placeholders, problems)}
            for call in message["tool_calls"]
        ]


def _filled(value: Any, placeholders: Mapping[str, str], problems: RowProblems) -> Any:
    """A JSON value with the placeholders of its texts replaced."""
    if isinstance(value, str):
        return _fill(value, placeholders, problems)
    if isinstance(value, dict):
        return {key: _filled(inner, placeholders, problems) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, placeholders, problems) for inner in value]
    return value


def _fill(content: str, placeholders: Mapping[str, str], problems: RowProblems) -> str:
    """The content with its {{name}} placeholders replaced, in one pass."""

    def replaced(found: re.Match[str]) -> str:
        name = found[1]
        if name not in placeholders:
            problems.fail(
                "content",
                f"placeholder {found[0]} is not filled",
                content,
                "data.placeholders with " + shorten(", ".join([*placeholders, name]), 200),
                nearest(name, placeholders),
            )
        return placeholders[name]

    return _PLACEHOLDER.sub(replaced, content)
