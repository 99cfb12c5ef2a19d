"""One source of rows into the pipeline: read, convert, key, write down. Streams.

Imports the standard library and this package; pyarrow when it is called.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from runner.common.errors import Problem, RefusedError, SpecError, nearest
from runner.data.column_advice import require_columns, with_remedy
from runner.data.compare import DEFAULT, match_keys
from runner.data.formats import (
    Conversation,
    Converter,
    Detection,
    FormatOptions,
    Message,
    convert_rows,
    detect,
    has_answer,
    label_text,
)
from runner.data.keys import draw_numbers, row_keys
from runner.data.ledger import Ledger, LeftOut, Lines
from runner.data.read import Row, shorten
from runner.data.row_notes import RowNotes

SAMPLED = 100  # rows that a format is told from
NAMED = 10
GROUP_ROWS = 20_000  # rows of content kept in memory before they are written
GROUP_CHARACTERS = 8_000_000
SAID_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Intake:
    """What is asked of one source."""

    index: int  # in the order of the report's sources
    field: str  # the job's field that names it
    place: str  # how errors and the report name it
    format: str  # data.format
    options: FormatOptions
    image_root: Path  # what relative image paths start from
    max_rows: int | None
    stratify: str | None  # key of the rows whose value is their stratum; None: they are not split
    split_seed: int | None  # None: rows are not split
    mix_seed: int | None  # None: rows are not mixed
    ignore: tuple[str, ...] = DEFAULT  # data.clean.ignore: what does not count in comparisons


@dataclass
class Taken:
    """What came of it."""

    detection: Detection
    read: int = 0
    first_id: int = 0
    stop_id: int = 0
    empty: int = 0
    empty_lines: list[int] = field(default_factory=list)
    untrained: int = 0  # rows whose marks leave no answer trained
    untrained_lines: list[int] = field(default_factory=list)
    notes: RowNotes = field(default_factory=RowNotes)  # unused keys, marks, tools, reasoning
    digest: str = ""  # over the content of the rows that were taken

    def empties(self) -> LeftOut:
        return LeftOut(self.empty, self.empty_lines)

    def without_answer(self) -> LeftOut:
        return LeftOut(self.untrained, self.untrained_lines)


def content_schema() -> Any:
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


def take(
    intake: Intake,
    rows: Iterator[tuple[int, Row]],
    content: Path,
    ledger: Ledger,
    first_id: int,
    say: Callable[[str], None],
) -> Taken:
    """Put the rows of a source in the Parquet file `content` and in the ledger.

    Ids count on from `first_id`. Raises SpecError: no rows, rows that fit no format or not the
    job's, a key to stratify by that a row lacks, an image that is not there; RefusedError: images
    for a model that takes none.
    """
    import pyarrow
    import pyarrow.parquet

    capped = islice(rows, intake.max_rows)
    sample = list(islice(capped, SAMPLED))
    if not sample:
        raise SpecError([Problem(intake.place, intake.field, "holds no rows")])
    detection = _detect(intake, sample)
    converter = Converter(detection.format, intake.options, source=intake.place, field=intake.field)
    taken = Taken(detection, first_id=first_id, stop_id=first_id, notes=converter.notes)
    buffer = _Buffer(intake, detection)
    digest = blake2b(digest_size=16)
    said = time.monotonic()
    schema = content_schema()
    with pyarrow.parquet.ParquetWriter(content, schema, compression="lz4") as writer:

        def flush() -> None:
            table, lines = buffer.tables(taken.stop_id, schema)
            digest.update(repr((lines.lines, lines.rows, lines.labels, lines.strata)).encode())
            digest.update("\n".join(table.column("messages").to_pylist()).encode())
            if any(tools := table.column("tools").to_pylist()):
                digest.update(repr(tools).encode())
            ledger.add(intake.index, lines)
            writer.write_table(table, row_group_size=GROUP_ROWS)
            taken.stop_id += len(buffer)
            buffer.clear()

        for number, row, conversation in convert_rows(chain(sample, capped), converter):
            taken.read += 1
            if conversation is None:
                taken.empty += 1
                if taken.empty <= NAMED:
                    taken.empty_lines.append(number)
                continue
            if not has_answer(conversation):
                taken.untrained += 1
                if taken.untrained <= NAMED:
                    taken.untrained_lines.append(number)
                continue
            converter.count(conversation)
            buffer.add(number, row, conversation)
            if len(buffer) >= GROUP_ROWS or buffer.characters >= GROUP_CHARACTERS:
                flush()
                if time.monotonic() - said > SAID_EVERY_SECONDS:
                    said = time.monotonic()
                    say(f"{intake.field}: {taken.read:,} rows read")
        if len(buffer):
            flush()
    digest.update(repr((taken.read, taken.empty_lines)).encode())
    taken.digest = digest.hexdigest()
    return taken


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


class _Buffer:
    """Rows on their way to disk."""

    def __init__(self, intake: Intake, detection: Detection) -> None:
        self._intake = intake
        self._labelled = detection.format == "text_label"
        self.clear()

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self.characters = 0

    def add(self, number: int, row: Mapping[str, Any], conversation: Conversation) -> None:
        messages, written, tools = conversation
        images, identities = _find_images(self._intake, number, written) if written else ((), ())
        exact = match_keys(messages, identities, (tools,))
        rule = self._intake.ignore
        matched = exact if rule == DEFAULT else match_keys(messages, identities, (tools,), rule)
        loose = row_keys(messages, identities, tools)
        stratum = None if self._intake.stratify is None else _stratum(self._intake, number, row)
        label = label_text(row["label"]) if self._labelled else stratum
        characters = sum([len(message["content"]) for message in messages])
        self.characters += characters
        text = messages_json(messages)
        given = None if tools is None else json.dumps(tools, ensure_ascii=False)
        keys = (matched, exact, loose)
        self._rows.append((number, text, images, label, given, *keys, stratum, characters))

    def tables(self, first_id: int, schema: Any) -> tuple[Any, Lines]:
        """The rows' content as an Arrow table of `schema`, and what the ledger is told of them."""
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


def _detect(intake: Intake, sample: list[tuple[int, Row]]) -> Detection:
    rows = [row for _, row in sample]
    try:
        detection = detect(rows, where=intake.place)
    except SpecError as error:
        if intake.format == "auto":
            raise with_remedy(error, rows) from None
        require_columns(intake.format, rows, intake.place, intake.field)  # type: ignore[arg-type]
        # more than one format fits, or none: the job says which; rows that don't fit it are named
        return Detection(intake.format, "the job says so")  # type: ignore[arg-type]
    if intake.format not in ("auto", detection.format):
        raise SpecError(
            [
                Problem(
                    intake.place,
                    "data.format",
                    f"the rows are {detection.format}: {detection.because}",
                    intake.format,
                    "the rows' own format, or auto",
                    detection.format,
                )
            ]
        )
    if detection.media and not intake.options.vision:
        raise RefusedError(
            f"{intake.place}: rows hold {', '.join(detection.media)}, which a text model can't "
            "read",
            "give vision.model for a model that takes images, or rows without",
        )
    return detection


def _stratum(intake: Intake, number: int, row: Mapping[str, Any]) -> str:
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


def _find_images(
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
