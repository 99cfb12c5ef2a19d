"""Detect how a table is written (delimiter, quotes, escapes) from all of its lines at once. Pure.

Imports the standard library only. Two readings are tried: with quotes around cells (RFC 4180), and
with quotes as plain characters (what IANA's text/tab-separated-values says). A reading fits where
every row has as many cells as the header. Each function takes the file's lines with their ends.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from runner.data.report_types import LeftOutRecord

MAX_CELL_CHARACTERS = 64 * 1024 * 1024
NAMED = 10
DELIMITERS = (",", "\t", ";", "|")
WORDS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe", " ": "space"}
QUOTES = {"double": '"', "single": "'", "none": None}
Escape = Literal["doubled", "backslash"]
Lines = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Dialect:
    """How cells are told apart."""

    delimiter: str
    quote: str | None  # None: a quote is a character like any other
    escape: Escape = "doubled"  # how a quote within quotes is written: "" or \\"

    @property
    def delimiter_word(self) -> str:
        return WORDS.get(self.delimiter, repr(self.delimiter))

    @property
    def quote_word(self) -> str:
        return {'"': "double", "'": "single"}.get(self.quote or "", "none")


@dataclass
class Places:
    """Rows that something is to be said of: how many, and the first lines."""

    rows: int = 0
    first_lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.rows += 1
        if self.rows <= NAMED:
            self.first_lines.append(line)

    def record(self) -> LeftOutRecord:
        return {"rows": self.rows, "first_lines": self.first_lines}


@dataclass
class Reading:
    """What a table is in one dialect."""

    dialect: Dialect
    header: list[str] = field(default_factory=list)
    header_line: int = 1
    rows: int = 0
    lines: int = 0
    blank: int = 0  # lines between rows that hold nothing
    hinted: bool = False  # the first line is Excel's sep=, which is neither blank nor a row
    quoted: Places = field(default_factory=Places)  # quotes were taken off a cell
    breaks: Places = field(default_factory=Places)  # a cell holds a line break
    tabs: Places = field(default_factory=Places)  # a cell holds a tab
    joined: Places = field(default_factory=Places)  # lines that would be rows each by themselves
    wrapped: int = 0  # read with quotes as characters: rows with a cell between two of them
    signed: int = 0  # of these, rows with a sign that quotes are marks: "" within, or ", " in prose
    # the first row that does not fit: (line, problem, its text)
    broken: tuple[int, str, str] | None = None

    @property
    def fits(self) -> bool:
        return self.broken is None

    @property
    def width(self) -> int:
        return len(self.header)


def rows_in(dialect: Dialect, lines: Iterable[str]) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, cells) of each row, the header too; [] for a blank line.

    Raises csv.Error where a row can't be told.
    """
    if dialect.quote is None:
        for number, line in enumerate(lines, start=1):
            text = without_end(line)
            yield number, number, text.split(dialect.delimiter) if text else []
        return
    # the module's limit of 128 KiB a cell is a process-wide setting: long documents exceed it
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    reader = csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote,
        doublequote=dialect.escape == "doubled",
        escapechar="\\" if dialect.escape == "backslash" else None,
        strict=True,
    )
    first = 1
    for cells in reader:
        yield first, reader.line_num, cells
        first = reader.line_num + 1


def is_hint(line: str) -> bool:
    """Whether a file's first line is Excel's "sep=;", which says the delimiter and is no header."""
    return line.startswith("sep=") and len(without_end(line)) == len("sep=;")


def without_end(line: str) -> str:
    """A line without the line end that it was told by: LF, CR LF or CR."""
    if line.endswith("\n"):
        line = line[:-1]
    return line.removesuffix("\r")


def look(dialect: Dialect, lines: Lines) -> Reading:
    """What the table is in this dialect; stops at the first row that does not fit."""
    found = Reading(dialect)
    own: list[str] = []

    def kept() -> Iterator[str]:
        for line in lines():
            own.append(line)
            yield line

    last = 0
    try:
        for first, last, cells in rows_in(dialect, kept()):
            text = own[: last - first + 1]
            del own[: last - first + 1]
            found.lines = last
            if first == 1 and is_hint(text[0]):
                found.hinted = True
            elif not cells:
                found.blank += 1
            elif not found.header:
                if any(cell.strip() for cell in cells):
                    found.header, found.header_line = cells, first
            elif len(cells) != len(found.header):
                problem = (
                    f"the row at line {first} has {len(cells)} cells, "
                    f"the header {len(found.header)}"
                )
                found.broken = (first, problem, "".join(text).strip("\r\n"))
                return found
            else:
                found.rows += 1
                _note(found, first, last, cells, text)
    except csv.Error as error:
        first = last + 1
        start = "".join(own[:1]).strip("\r\n")
        found.broken = (first, f"the row at line {first} is broken: {_words(error)}", start)
    return found


def _note(found: Reading, first: int, last: int, cells: list[str], text: list[str]) -> None:
    delimiter, quote = found.dialect.delimiter, found.dialect.quote
    held = "".join(cells)
    if last > first or "\r" in held:
        found.breaks.add(first)
    if "\t" in held:
        found.tabs.add(first)
    if quote is None:
        found.wrapped += any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
        return
    if len(held) + (len(cells) - 1) * len(delimiter) < len(without_end("".join(text))):
        found.quoted.add(first)
    if last > first and len(cells) > 1:
        widths = {line.count(delimiter) + 1 for line in text if without_end(line)}
        if widths == {len(cells)}:
            found.joined.add(first)
            found.signed += _is_prose(text, quote, delimiter)


def _is_prose(text: list[str], quote: str, delimiter: str) -> bool:
    """Whether something in a row of several lines tells that its quotes are marks."""
    doubled = any(quote * 2 in line.strip(quote) for line in text)
    # a writer of tables puts no space behind a comma, a writer of sentences does
    return doubled or (delimiter == "," and any(", " in line for line in text))


def _words(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quote is opened and never closed"
    if "new-line character" in text:
        return "a carriage return outside of quotes"
    return text


@dataclass(frozen=True)
class Choice:
    """The dialect of a file and why it is that one; or what keeps it from being told."""

    reading: Reading
    because: str
    doubt: str | None = None  # the readings differ, and nothing tells which is meant
    line: int = 1  # where they do first


def choose(
    lines: Lines,
    usual: str,
    delimiter: str | None = None,
    quote: str = "auto",
    escape: str = "auto",
) -> Choice:
    """The dialect in which every row fits the header.

    Args:
        usual: the delimiter by the file's name, tried first.
        delimiter, quote, escape: as the job states them (quote: a key of QUOTES); None or "auto":
            told from the lines.
    """
    head = next(lines(), "")
    if delimiter is None and is_hint(head):
        delimiter = without_end(head)[-1]
    others = [] if delimiter else [each for each in DELIMITERS if each != usual]
    first: Choice | None = None
    for each in [delimiter or usual, *others]:
        found = _with_delimiter(lines, each, quote, escape)
        first = first or found
        if found.doubt or (found.reading.fits and found.reading.width > 1):
            if each != (delimiter or usual):
                why = f"every row has {found.reading.width} cells by {WORDS[each]}"
                return Choice(found.reading, f"{why}; {found.because}", found.doubt, found.line)
            return found
    assert first is not None  # noqa: S101 - there is one delimiter at least
    return first


def _with_delimiter(lines: Lines, delimiter: str, quote: str, escape: str) -> Choice:
    plain = look(Dialect(delimiter, None), lines)
    if quote == "none":
        return Choice(plain, "quotes are plain characters, as the job says")
    mark = QUOTES["double" if quote == "auto" else quote] or '"'
    if quote == "auto" and plain.fits and not _has(lines, mark):
        return Choice(plain, "no cell is quoted")
    if quote == "auto" and plain.broken and not _has(lines, mark):
        return Choice(plain, "")
    marked = look(
        Dialect(delimiter, mark, "backslash" if escape == "backslash" else "doubled"), lines
    )
    if escape == "auto" and not marked.fits and _has(lines, "\\" + mark):
        other = look(Dialect(delimiter, mark, "backslash"), lines)
        if other.fits:
            marked = other
    if quote != "auto":
        return Choice(marked, f"{quote} quotes stand around cells, as the job says")
    return _between(plain, marked)


def _between(plain: Reading, marked: Reading) -> Choice:
    """The reading without and the one with quotes: which is meant."""
    if not marked.fits and not plain.fits:
        # the one that goes further tells better what is wrong
        ahead = (plain.broken or (0,))[0] > (marked.broken or (0,))[0]
        return Choice(plain if ahead else marked, "")
    if not marked.fits:
        line, problem, _ = marked.broken or (0, "", "")
        if plain.wrapped and plain.dialect.delimiter != "\t":
            # one broken row does not turn the quotes around all others into text
            return Choice(plain, "", f"{problem}, but quotes stand around cells elsewhere", line)
        return Choice(plain, f"quotes are plain characters: taken for marks, {problem}")
    tab = marked.dialect.delimiter == "\t"
    joined, signed = marked.joined.rows, marked.signed
    if not plain.fits:
        if tab and joined > signed:
            line = marked.joined.first_lines[0]
            doubt = (
                f"the quotes from line {line} on join lines that would each be a row of "
                f"{marked.width} cells"
            )
            return Choice(marked, "", doubt, line)
        return Choice(marked, "quotes stand around cells")
    if marked.rows == plain.rows or marked.width == 1 or (signed == joined and not tab):
        return Choice(marked, "quotes stand around cells")
    if tab and not signed:
        return Choice(
            plain,
            f"quotes are plain characters: every line is a row of {plain.width} cells, and taken "
            f"for marks they would join {plain.rows:,} rows to {marked.rows:,}",
        )
    line = marked.breaks.first_lines[0]
    doubt = (
        f"{marked.rows:,} rows where quotes stand around cells, {plain.rows:,} where they are "
        "plain characters, and both fit the header"
    )
    return Choice(marked, "", doubt, line)


def _has(lines: Lines, text: str) -> bool:
    return any(text in line for line in lines())
