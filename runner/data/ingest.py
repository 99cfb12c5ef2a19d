"""One source of rows into the pipeline: read, convert, key, write down. Streams.

Imports the standard library and this package; pyarrow when it is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

from runner.common.errors import Problem, RefusedError, SpecError
from runner.data.column_advice import require_columns, with_remedy
from runner.data.convert import Converter, convert_rows
from runner.data.detect import Detection, detect
from runner.data.formats import has_answer
from runner.data.intake import Intake
from runner.data.read import Row
from runner.data.row_buffer import RowBuffer, content_schema
from runner.data.row_index import RowIndex
from runner.data.row_notes import RowNotes
from runner.data.row_table import LeftOut

SAMPLED = 100  # rows that a format is told from

NAMED = 10

GROUP_ROWS = 20_000  # rows of content kept in memory before they are written

GROUP_CHARACTERS = 8_000_000

SAID_EVERY_SECONDS = 10.0


@dataclass
class IngestResult:
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


def ingest(
    intake: Intake,
    rows: Iterator[tuple[int, Row]],
    content: Path,
    row_index: RowIndex,
    first_id: int,
    say: Callable[[str], None],
) -> IngestResult:
    """Put the rows of a source in the Parquet file `content` and in the row index.

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
    result = IngestResult(detection, first_id=first_id, stop_id=first_id, notes=converter.notes)
    buffer = RowBuffer(intake, detection)
    digest = blake2b(digest_size=16)
    said = time.monotonic()
    schema = content_schema()
    with pyarrow.parquet.ParquetWriter(content, schema, compression="lz4") as writer:

        def flush() -> None:
            table, lines = buffer.tables(result.stop_id, schema)
            digest.update(repr((lines.lines, lines.rows, lines.labels, lines.strata)).encode())
            digest.update("\n".join(table.column("messages").to_pylist()).encode())
            if any(tools := table.column("tools").to_pylist()):
                digest.update(repr(tools).encode())
            row_index.add(intake.index, lines)
            writer.write_table(table, row_group_size=GROUP_ROWS)
            result.stop_id += len(buffer)
            buffer.clear()

        for number, row, conversation in convert_rows(chain(sample, capped), converter):
            result.read += 1
            if conversation is None:
                result.empty += 1
                if result.empty <= NAMED:
                    result.empty_lines.append(number)
                continue
            if not has_answer(conversation):
                result.untrained += 1
                if result.untrained <= NAMED:
                    result.untrained_lines.append(number)
                continue
            converter.count(conversation)
            buffer.add(number, row, conversation)
            if len(buffer) >= GROUP_ROWS or buffer.characters >= GROUP_CHARACTERS:
                flush()
                if time.monotonic() - said > SAID_EVERY_SECONDS:
                    said = time.monotonic()
                    say(f"{intake.field}: {result.read:,} rows read")
        if len(buffer):
            flush()
    digest.update(repr((result.read, result.empty_lines)).encode())
    result.digest = digest.hexdigest()
    return result


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
