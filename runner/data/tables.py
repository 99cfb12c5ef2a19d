"""Rows of a CSV or TSV file: its encoding and dialect decided once, every row by them. Streams.

Imports the standard library and this package's `dialect` and `row_errors`.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from runner.data.dialect import Choice, Lines, Reading, choose, rows_in
from runner.data.report_types import TableRecord
from runner.data.row_errors import fail, fail_decoding

Row = dict[str, object]

USUAL = {".csv": ",", ".tsv": "\t"}
_BOMS = (  # the longer first: UTF-32's begins as UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BLOCK_CHARACTERS = 1 << 20
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class TableOptions:
    """What the job says of a table (data.table); "auto": it is told from the file."""

    delimiter: str = "auto"  # or one character
    quote: str = "auto"  # double, single, none
    escape: str = "auto"  # doubled, backslash
    encoding: str = "auto"  # a codec of Python's


AS_TOLD = TableOptions()
"""All is told from the file."""


@dataclass(frozen=True)
class Table:
    """A file's encoding, line ends, dialect, header and size."""

    encoding: str
    newline: str  # what ends a line: "\\n" (with a "\\r" before it or not) or "\\r"
    line_end: str  # LF, CRLF, CR, mixed
    because: str
    reading: Reading
    header: list[str]

    def record(self) -> TableRecord:
        """For the report, JSON-ready."""
        read = self.reading
        return {
            "delimiter": read.dialect.delimiter_word,
            "quote": read.dialect.quote_word,
            "escape": read.dialect.escape if read.dialect.quote else None,
            "encoding": self.encoding.removesuffix("-sig"),
            "byte_order_mark": self.encoding in ("utf-8-sig", "utf-16", "utf-32"),
            "line_end": self.line_end,
            "because": self.because,
            "columns": self.header,
            "lines": read.lines,
            "blank_lines": read.blank,
            "delimiter_line": read.hinted,
            "rows": read.rows,
            "quoted": read.quoted.record(),
            "with_line_breaks": read.breaks.record(),
            "with_tabs": read.tabs.record(),
            "joined_lines": read.joined.record(),
        }


def read_table(
    path: Path,
    field: str,
    options: TableOptions = AS_TOLD,
) -> Iterator[tuple[int, Row]]:
    """(the line that a row begins at, row); the header is no row, nor is a blank line.

    Raises SpecError as `look_at` does, before the first row.
    """
    table = look_at(path, field, options)
    with path.open(encoding=table.encoding, newline=table.newline) as stream:
        for first, _, cells in rows_in(table.reading.dialect, stream):
            if cells and first > table.reading.header_line:
                yield first, dict(zip(table.header, cells, strict=True))


def look_at(
    path: Path,
    field: str,
    options: TableOptions = AS_TOLD,
) -> Table:
    """What the whole file says of itself, kept for the next who asks.

    Raises SpecError naming file and line: a row with more or fewer cells than the header, quotes
    that don't close, a header that names a column twice, bytes of another encoding, or two ways to
    read the file of which nothing tells which is meant.
    """
    known = path.stat()
    return _look_at(path, field, options, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=16)
def _look_at(path: Path, field: str, options: TableOptions, _size: int, _mtime: int) -> Table:
    encoding = options.encoding if options.encoding != "auto" else _encoding(path, field)
    try:
        newline, line_end = _line_ends(path, encoding)

        def lines() -> Iterator[str]:
            with path.open(encoding=encoding, newline=newline) as stream:
                yield from stream

        choice = _choose(path, lines, options)
    except UnicodeError as error:
        _fail_encoding(path, field, encoding, error)
    _refuse(path, field, choice)
    header = _header(path, field, choice.reading) if choice.reading.header else []
    return Table(encoding, newline, line_end, choice.because, choice.reading, header)


def _choose(path: Path, lines: Lines, options: TableOptions) -> Choice:
    stated = None if options.delimiter == "auto" else options.delimiter
    return choose(lines, USUAL[path.suffix.lower()], stated, options.quote, options.escape)


def _refuse(path: Path, field: str, choice: Choice) -> None:
    read = choice.reading
    if choice.doubt is not None:
        fail(
            path,
            choice.line,
            field,
            f"the file can be read in two ways: {choice.doubt}",
            expected="data.table.quote: double (quotes stand around cells) or none (they are "
            "characters of the text)",
        )
    if read.broken is not None:
        line, problem, text = read.broken
        fail(
            path,
            line,
            field,
            problem,
            value=text,
            expected=f"{read.width} cells: {', '.join(read.header)}"
            + f" ({read.dialect.delimiter_word}-separated, {_quotes(read)}; data.table says it "
            "otherwise)",
        )


def _quotes(read: Reading) -> str:
    if read.dialect.quote is None:
        return "quotes are plain characters"
    inside = "\\" + read.dialect.quote if read.dialect.escape == "backslash" else "two of them"
    return f"quotes around cells, one within written as {inside}"


def _encoding(path: Path, field: str) -> str:
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if b"\0" in head:
        fail(
            path,
            1,
            field,
            "holds NUL bytes: it is no UTF-8 text",
            expected="UTF-8; of a file in UTF-16 without a byte order mark say "
            "data.table.encoding: utf-16-le",
        )
    return "utf-8"


def _line_ends(path: Path, encoding: str) -> tuple[str, str]:
    """(what ends a line, its name). A CR ends one only where no LF is anywhere."""
    feeds = pairs = returns = 0
    with path.open(encoding=encoding, newline="") as stream:
        before = ""
        while block := stream.read(_BLOCK_CHARACTERS):
            feeds += block.count("\n")
            returns += block.count("\r")
            pairs += block.count("\r\n") + (before == "\r" and block[0] == "\n")
            before = block[-1]
    if not feeds:
        return ("\r", "CR") if returns else ("\n", "LF")
    return "\n", "LF" if not pairs else "CRLF" if pairs == feeds else "mixed"


def _header(path: Path, field: str, reading: Reading) -> list[str]:
    """The columns' names; one without a name (as of a table with an index) is `column N`."""
    # a byte order mark stays where the job states the encoding
    names = [name.lstrip("\ufeff").strip() for name in reading.header]
    twice = [name for name, times in Counter(names).items() if name and times > 1]
    if twice:
        fail(
            path,
            reading.header_line,
            field,
            f"the header names the column {twice[0]!r} more than once",
            value=reading.dialect.delimiter.join(reading.header),
            expected="one distinct name for each column",
        )
    return [name or f"column {place}" for place, name in enumerate(names, start=1)]


def _fail_encoding(path: Path, field: str, encoding: str, error: UnicodeError) -> NoReturn:
    if encoding in ("utf-8", "utf-8-sig"):
        fail_decoding(
            path, field, "; data.table.encoding names another, such as gb18030 of Chinese Excel"
        )
    line = None
    if not encoding.startswith(("utf-16", "utf-32")):
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    raw.decode(encoding)
                except UnicodeError as found:
                    line, error = number, found
                    break
    fail(path, line, field, f"is not {encoding}: {error}", expected="its own data.table.encoding")
