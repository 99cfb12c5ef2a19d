"""data-juicer's JSONL to LLaVA's JSON, by the rules of data-juicer v1.0.2's dj_to_llava.

    python convert.py --input ROWS.jsonl --output ROWS.json --questions stage_1.json
    python convert.py --input ROWS.jsonl --output ROWS.json --default-question TEXT

The rules, with that tool's options --image_special_token "<__dj__image>" --restore_questions True:
a row's text loses one end mark and one image mark at either end and is the answer; question,
answerer and the form of the id come from the row of the questions' file that has its id (the last
of several); an id that is not there, or two different images, end the conversion. A row without
images has no "image". Memory holds the questions of the rows' ids and no more. Standard library
only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, TextIO

if __package__:
    from .ending import refuse
    from .whole import whole_file
else:  # in a run folder the scripts lie beside each other
    from ending import refuse  # type: ignore[import-not-found, no-redef]
    from whole import whole_file  # type: ignore[import-not-found, no-redef]

IMAGE_MARK = "<image>"
DJ_IMAGE = "<__dj__image>"
DJ_END = "<|__dj__eoc|>"
_CHUNK = 1 << 20
_SPACE = " \t\n\r"


class RowError(ValueError):
    """A row that can't be converted; the message says which and why."""


class Original(NamedTuple):
    """What a row of the questions' file gives back to a row that has lost it."""

    id: object
    question: object  # the whole first turn
    answerer: str  # "from" of the second


def answer_of(text: str) -> str:
    """The caption in a data-juicer text: its marks and the space around them taken off."""
    text = text.strip()
    if text.endswith(DJ_END):
        text = text[: -len(DJ_END)].strip()
    if text.startswith(DJ_IMAGE):
        text = text[len(DJ_IMAGE) :].strip()
    if text.endswith(DJ_IMAGE):
        text = text[: -len(DJ_IMAGE)].strip()
    return text


def named_row(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """A row with its id, text and images under these names, of the keys that `columns` says."""
    named = {key: value for key, value in row.items() if key not in columns}
    return named | {name: row[key] for name, key in columns.items() if key in row}


def convert_row(row: Mapping[str, object], original: Original) -> dict[str, object]:
    """One LLaVA row. Raises RowError where it has more than one image or lacks its text."""
    text, images = row.get("text"), row.get("images") or []
    if not isinstance(text, str):
        raise RowError(f"id {row.get('id')!r}: no text")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RowError(f"id {row.get('id')!r}: images is not a list of paths")
    distinct = set(images)
    if len(distinct) > 1:
        raise RowError(f"id {row.get('id')!r}: {len(distinct)} different images, at most one fits")
    converted: dict[str, object] = {
        "id": original.id,
        "conversations": [
            original.question,
            {"from": original.answerer, "value": answer_of(text)},
        ],
    }
    if distinct:
        converted["image"] = images[0]
    return converted


def default_original(row: Mapping[str, object], question: str) -> Original:
    """What stands in for a questions' file: the same question for every row."""
    asked = f"{IMAGE_MARK}\n{question}" if row.get("images") else question
    return Original(row["id"], {"from": "human", "value": asked}, "gpt")


def read_rows(
    stream: TextIO, name: str, columns: Mapping[str, str] | None = None
) -> Iterator[dict[str, object]]:
    """The rows of a JSONL file. Raises RowError with file and line for what is no row."""
    columns = columns or {}
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RowError(f"{name}:{number}: {error}") from None
        if not isinstance(row, dict) or columns.get("id", "id") not in row:
            raise RowError(f"{name}:{number}: not a row with an {columns.get('id', 'id')}")
        yield named_row(row, columns) if columns else row


def read_array(stream: TextIO, name: str) -> Iterator[dict[str, object]]:
    """The objects of a JSON array, one in memory at a time. Raises RowError for anything else."""
    decoder, buffer, position, ended = json.JSONDecoder(), "", 0, False

    def peek() -> str:
        """The next character that is not space; "" at the end."""
        nonlocal buffer, position, ended
        while not ended:
            while position < len(buffer) and buffer[position] in _SPACE:
                position += 1
            if position < len(buffer):
                return buffer[position]
            buffer, position = stream.read(_CHUNK), 0
            ended = not buffer
        return ""

    def take(expected: str) -> str:
        nonlocal position
        found = peek()
        if not found or found not in expected:
            raise RowError(f"{name}: not a JSON array of rows (found {found or 'its end'!r})")
        position += 1
        return found

    take("[")
    if peek() == "]":
        return
    while True:
        take("{")
        position -= 1
        while True:
            try:  # an object that goes on in the next chunk is no JSON yet
                row, position = decoder.raw_decode(buffer, position)
                break
            except ValueError as error:
                more = stream.read(_CHUNK)
                if not more:
                    raise RowError(f"{name}: {error}") from None
                buffer, position = buffer[position:] + more, 0
        yield row
        if take(",]") == "]":
            return


def read_originals(
    elements: Iterable[Mapping[str, object]], wanted: set[str], name: str
) -> dict[str, Original]:
    """Id as text -> what the last row with that id has. Raises RowError for a row without turns."""
    found: dict[str, Original] = {}
    for element in elements:
        if "id" not in element:
            raise RowError(f"{name}: a row without an id")
        key = str(element["id"])
        if key not in wanted:
            continue
        turns = element.get("conversations")
        if (
            not isinstance(turns, list)
            or len(turns) < 2
            or not all(isinstance(turn, dict) for turn in turns[:2])
            or not isinstance(turns[1].get("from"), str)
        ):
            raise RowError(f"{name}: id {key}: no question and answer in its conversations")
        found[key] = Original(element["id"], turns[0], turns[1]["from"])
    return found


def write_array(rows: Iterable[Mapping[str, object]], stream: IO[str]) -> int:
    """Rows written, in the bytes that json.dump gives for their list."""
    count = 0
    stream.write("[")
    for count, row in enumerate(rows, 1):
        stream.write(", " if count > 1 else "")
        stream.write(json.dumps(row))
    stream.write("]")
    return count


def convert(
    source: Path,
    target: Path,
    questions: Path | None,
    default_question: str,
    columns: Mapping[str, str] | None = None,
) -> int:
    """Rows written to `target`; `columns`: id, text, images -> the rows' own keys.

    Raises RowError, OSError.
    """
    originals: dict[str, Original] | None = None
    if questions is not None:
        with source.open(encoding="utf-8") as stream:
            wanted = {str(row["id"]) for row in read_rows(stream, str(source), columns)}
        with questions.open(encoding="utf-8") as stream:
            originals = read_originals(read_array(stream, str(questions)), wanted, str(questions))

    def converted(rows: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
        for row in rows:
            if originals is None:
                yield convert_row(row, default_original(row, default_question))
                continue
            original = originals.get(str(row["id"]))
            if original is None:
                raise RowError(f"{source}: id {row['id']!r} is not in {questions}")
            yield convert_row(row, original)

    with source.open(encoding="utf-8") as rows, whole_file(target) as written:
        count = write_array(converted(read_rows(rows, str(source), columns)), written)
        if not count:
            raise RowError(f"{source} has no rows")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--questions", type=Path)
    either.add_argument("--default-question")
    parser.add_argument("--column", action="append", default=[], metavar="NAME=KEY")
    given = parser.parse_args()
    columns = dict(each.split("=", 1) for each in given.column)
    try:
        question = given.default_question or ""
        count = convert(given.input, given.output, given.questions, question, columns)
    except (RowError, OSError, UnicodeDecodeError) as error:
        return refuse(f"convert: {error}")
    asked = (
        f"questions from {given.questions}"
        if given.questions
        else f"every row asks {given.default_question!r}"
    )
    print(f"convert: {count:,} rows to {given.output}; {asked}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
