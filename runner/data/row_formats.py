"""A row of each format as messages; refuse what does not fit.

Imports the standard library, `runner.common.errors` and this package's modules about rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from itertools import islice

from runner.common.errors import nearest
from runner.data.formats import IMAGE_MARK, Format, FormatOptions
from runner.data.messages import Message
from runner.data.read import shorten
from runner.data.row_notes import RowNotes
from runner.data.row_problems import RowProblems
from runner.data.tool_calls import calls_of
from runner.data.turns import messages_of

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

_WHOLE = re.compile(r"-?[0-9]+\.0+")


def read_turns(
    row: Mapping[str, object], key: Format, problems: RowProblems, notes: RowNotes
) -> list[Message]:
    if key not in row:
        problems.fail(key, "is missing", sorted(row)[:8], "a list of turns", nearest(key, row))
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        problems.fail(key, "is not a list of turns", turns, "a list with at least two turns")
    return messages_of(turns, key, problems, notes)


def read_alpaca(row: Mapping[str, object], problems: RowProblems) -> list[Message]:
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


def read_text_label(
    row: Mapping[str, object], options: FormatOptions, problems: RowProblems
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


def read_data_juicer(
    row: Mapping[str, object],
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
