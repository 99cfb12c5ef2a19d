"""Rows on their way to disk: what is written of each, and the keys that it is known by.

Imports the standard library, `runner.common.errors` and this package; pyarrow when it is called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

from runner.common.errors import Problem, SpecError, nearest
from runner.data.compare import DEFAULT, match_keys_by_rules
from runner.data.detect import Detection
from runner.data.formats import Conversation
from runner.data.intake import Intake
from runner.data.keys import draw_numbers, row_keys
from runner.data.messages import Message as Message
from runner.data.read import shorten
from runner.data.row_formats import label_text
from runner.data.row_table import Lines

if TYPE_CHECKING:
    import pyarrow


def content_schema() -> pyarrow.Schema:
    """Arrow schema of the rows as they are written down."""
    import pyarrow

    return pyarrow.schema(
        [
            ("line", pyarrow.int64()),
            ("messages", pyarrow.string()),
            ("images", pyarrow.list_(pyarrow.string())),
            ("label", pyarrow.string()),
            ("tools", pyarrow.string()),
        ]
    )


def messages_json(messages: list[Message]) -> str:
    """`messages` as json.dumps would write them, in a third of its time."""
    return (
        "["
        + ", ".join(
            [
                f'{{"role": "{m["role"]}", "content": {encode_basestring(m["content"])}}}'
                if len(m) == 2
                else json.dumps(m, ensure_ascii=False)
                for m in messages
            ]
        )
        + "]"
    )


class RowBuffer:
    """Rows on their way to disk."""

    def __init__(self, intake: Intake, detection: Detection) -> None:
        self._intake = intake
        self._labelled = detection.format == "text_label"
        self.clear()

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        self._rows: list[tuple[object, ...]] = []
        self.characters = 0

    def add(self, number: int, row: Mapping[str, object], conversation: Conversation) -> None:
        messages, written, tools = conversation
        images, identities = find_images(self._intake, number, written) if written else ((), ())
        rules = (DEFAULT,) if self._intake.ignore == DEFAULT else (DEFAULT, self._intake.ignore)
        matches = match_keys_by_rules(messages, identities, (tools,), rules)
        exact, matched = matches[0], matches[-1]
        loose = row_keys(messages, identities, tools)
        stratum = None if self._intake.stratify is None else stratum_of(self._intake, number, row)
        label = label_text(row["label"]) if self._labelled else stratum
        characters = sum([len(message["content"]) for message in messages])
        self.characters += characters
        text = messages_json(messages)
        given = None if tools is None else json.dumps(tools, ensure_ascii=False)
        keys = (matched, exact, loose)
        self._rows.append((number, text, images, label, given, *keys, stratum, characters))

    def tables(self, first_id: int, schema: pyarrow.Schema) -> tuple[pyarrow.Table, Lines]:
        """The rows' content as an Arrow table of `schema`, and their columns."""
        import pyarrow

        numbers, texts, images, labels, tools, matched, exact, loose, strata, characters = zip(
            *self._rows, strict=True
        )
        (prompts, rows), (exact_prompts, exact_rows), (loose_prompts, loose_rows) = (
            zip(*keys, strict=True) for keys in (matched, exact, loose)
        )
        intake = self._intake
        content = {"line": numbers, "messages": texts, "images": images, "label": labels}
        content["tools"] = tools
        split = (
            None if intake.split_seed is None else draw_numbers(loose_prompts, intake.split_seed)
        )
        mix = None if intake.mix_seed is None else draw_numbers(loose_rows, intake.mix_seed)
        return pyarrow.table(content, schema=schema), Lines(
            first_id,
            numbers,
            prompts,
            rows,
            exact_prompts,
            exact_rows,
            loose_prompts,
            loose_rows,
            split,
            mix,
            labels,
            strata,
            characters,
        )


def stratum_of(intake: Intake, number: int, row: Mapping[str, object]) -> str:
    key = intake.stratify or ""
    value = row.get(key)
    if value is None:
        raise SpecError(
            [
                Problem(
                    f"{intake.place}:{number}",
                    "data.split.stratify",
                    "the row has no such key" if key not in row else "the row's value is null",
                    key,
                    "a key that every row has: " + shorten(", ".join(row), 200),
                    nearest(key, row),
                )
            ]
        )
    text = value if isinstance(value, str) else shorten(value, 200)
    if not text.isascii() and text.encode("utf-8", "ignore").decode("utf-8") != text:
        raise SpecError(
            [
                Problem(
                    f"{intake.place}:{number}",
                    "data.split.stratify",
                    "the row's value holds half of a surrogate pair, which is no character",
                    f"{key}: {shorten(text)}",
                    "text that can be written as UTF-8",
                )
            ]
        )
    return text


def find_images(
    intake: Intake, number: int, written: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """(absolute paths, what identifies each image): the path as written and the size in bytes.

    Where the folder lies does not count, so that a split is the same on every machine.
    """
    paths, identities = [], []
    for name in written:
        path = intake.image_root / name
        try:
            size = path.stat().st_size if path.is_file() else -1
        except (OSError, ValueError):
            size = -1
        if size < 0:
            folder = path.parent
            near = None
            if folder.is_dir():
                near = nearest(path.name, (entry.name for entry in islice(folder.iterdir(), 1000)))
            raise SpecError(
                [
                    Problem(
                        f"{intake.place}:{number}",
                        f"{intake.field} -> images",
                        "no such image file",
                        name,
                        f"a file in {intake.image_root} (data.image_folder, or the rows' folder)",
                        near,
                    )
                ]
            )
        paths.append(str(path))
        identities.append(f"{name} {size}")
    return paths, identities
