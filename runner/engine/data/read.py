"""Read rows from a data file, and name the exact place where one is broken.

Imports the standard library; pyarrow (parquet) only when it is needed.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NoReturn, TextIO

from runner.errors import Problem, RefusedError, SpecError, nearest

Row = dict[str, Any]

MAX_CELL_CHARACTERS = 64 * 1024 * 1024
MAX_ROW_CHARACTERS = 256 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_ARRAY = "an array of objects: [{...}, {...}]"
_BUFFER_CHARACTERS = 1 << 20
_LOOKAHEAD = 16  # more than the longest thing but a string that JSON's grammar has: \\ud83d\\ude00
_PARQUET_ROWS = 1000
_DECODER = json.JSONDecoder()
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def shorten(value: object, limit: int = 80) -> str:
    """A value as one line of at most `limit` characters, for error messages."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # a lone surrogate can't be printed; show it as its escape instead
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    text = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_rows(path: Path, field: str = "data.train") -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a .json, .jsonl, .ndjson, .csv, .tsv or .parquet file.

    The number is 1-based: the line in a .jsonl, .ndjson, .csv or .tsv file (a header is line 1),
    the row in a .json array or a .parquet file. `field` is the job's field that names the file.

    The file is looked at on the first row asked for, not at the call. Raises SpecError, with one
    Problem, where the file is missing, empty, of an unknown kind, not UTF-8 or broken.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        _fail(
            path,
            None,
            field,
            "unknown kind of data file",
            value=path.suffix or path.name,
            expected="one of " + ", ".join(_READERS),
            near=nearest(path.suffix.lower(), _READERS) if path.suffix else None,
        )
    if not path.is_file():
        _fail_missing(path, field)
    found = False
    try:
        for number, row in reader(path, field):
            found = True
            yield number, row
    except OSError as error:
        _fail(path, None, field, f"can't be read: {error.strerror or error}", cause=error)
    if not found:
        _fail(path, None, field, "the file is empty", expected="at least one row")


def _fail(
    path: Path,
    line: int | None,
    field: str,
    problem: str,
    *,
    value: object | None = None,
    expected: str | None = None,
    near: str | None = None,
    cause: Exception | None = None,
) -> NoReturn:
    where = str(path) if line is None else f"{path}:{line}"
    shown = None if value is None else shorten(value)
    raise SpecError([Problem(where, field, problem, shown, expected, near)]) from cause


def _fail_missing(path: Path, field: str) -> NoReturn:
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _READERS)
        inside = f"a file; the folder holds {shorten(', '.join(names))}" if names else "a file"
        _fail(path, None, field, "is a folder", expected=inside)
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent  # name the first part of the path that does not exist
    near = nearest(missing.name, (p.name for p in missing.parent.iterdir()))
    what = "no such file" if missing == path else f"no such folder: {missing}"
    _fail(
        path,
        None,
        field,
        what,
        value=path.name if missing == path else missing.name,
        near=str(missing.parent / near) if near else None,
    )


def _decode(path: Path, field: str, raw: bytes, line: int | None, offset: int) -> str:
    """UTF-8 text of bytes that start at `offset` of the file; says which byte is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        if line is None:
            line = raw[: error.start].count(b"\n") + 1
        utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        _fail(
            path,
            line,
            field,
            f"not UTF-8: byte 0x{raw[error.start]:02x} at byte offset {at}",
            expected="UTF-8" + (" (the file looks like UTF-16: convert it)" if utf16 else ""),
            cause=error,
        )


def _fail_decoding(path: Path, field: str) -> NoReturn:
    """Name the first byte of the file that is not UTF-8, which a buffered reader can't."""
    offset = 0
    with path.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            _decode(path, field, raw, line, offset)
            offset += len(raw)
    raise AssertionError(f"{path} is UTF-8 after all")


def _read_jsonl(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    offset = 0
    with path.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            start, offset = offset, offset + len(raw)
            if line == 1 and raw.startswith(_BOM):
                raw, start = raw[len(_BOM) :], len(_BOM)
            text = _decode(path, field, raw, line, start)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                _fail(
                    path,
                    line,
                    field,
                    f"line {line} is not JSON: {_reason(error)}",
                    value=text.strip(),
                    expected="one JSON object on each line",
                    near="a .json file" if line == 1 and text.strip() in "[{" else None,
                    cause=error,
                )
            if not isinstance(row, dict):
                _fail(
                    path,
                    line,
                    field,
                    f"line {line} is {_kind(row)}, not a JSON object",
                    value=text.strip(),
                    expected="one JSON object on each line",
                )
            yield line, row


def _read_json(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from _Array(path, field, stream).rows()
        except UnicodeDecodeError:
            _fail_decoding(path, field)


class _Array:
    """The objects of a JSON array, decoded one by one from a buffer of some rows."""

    def __init__(self, path: Path, field: str, stream: TextIO) -> None:
        self._path, self._field, self._stream = path, field, stream
        self._text = ""
        self._at = 0  # what is before it in the buffer is done with
        self._ended = False  # the buffer holds the rest of the file
        self._line, self._column = 1, 1  # where the buffer begins, 1-based

    def rows(self) -> Iterator[tuple[int, Row]]:
        """(1-based row number, row); SpecError at the first place that is no array of objects."""
        first = self._next()
        if not first:
            return
        if first != "[":
            self._fail_other_than_array()
        self._at += 1
        if self._next() == "]":
            self._at += 1
        else:
            for number in count(1):
                value = self._value()
                if not isinstance(value, dict):
                    _fail(
                        self._path,
                        number,
                        self._field,
                        f"row {number} is {_kind(value)}, not an object",
                        value=value,
                        expected=_ARRAY,
                    )
                yield number, value
                if (mark := self._next()) == "]":
                    self._at += 1
                    break
                if mark != ",":
                    self._fail_at("Expecting ',' delimiter", self._at)
                self._at += 1
                self._next()
        if self._next():
            self._fail_at("Extra data", self._at)

    def _more(self) -> None:
        """Read on, as much again as is kept: a long row is looked at few times."""
        done = self._text[: self._at]
        lines = done.count("\n")
        self._line += lines
        self._column = len(done) - done.rfind("\n") if lines else self._column + len(done)
        kept = len(self._text) - self._at
        if kept > MAX_ROW_CHARACTERS:
            self._fail_at(f"one row has over {MAX_ROW_CHARACTERS:,} characters", self._at)
        added = self._stream.read(max(kept, _BUFFER_CHARACTERS))
        self._text, self._at = self._text[self._at :] + added, 0
        self._ended = not added

    def _next(self) -> str:
        """The next character that is no white space, not taken; empty at the end of the file."""
        while True:
            found = _JSON_SPACE.match(self._text, self._at)
            assert found is not None  # noqa: S101 - the pattern matches nothing too
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # only what stands well before the buffer's end is wrong whatever comes behind it
                open_ended = error.msg.startswith("Unterminated string")
                if self._ended or not (open_ended or error.pos > len(self._text) - _LOOKAHEAD):
                    self._fail_at(error.msg, error.pos)
            except RecursionError as error:
                line = self._place(self._at)[0]
                _fail(
                    self._path,
                    line,
                    self._field,
                    f"line {line} is not JSON: nested too deeply",
                    expected="an array of objects",
                    cause=error,
                )
            else:
                if self._ended or end < len(self._text):
                    self._at = end
                    return value
            self._more()

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column in the file, both 1-based, of a place in the buffer."""
        lines = self._text.count("\n", 0, at)
        if lines:
            return self._line + lines, at - self._text.rfind("\n", 0, at)
        return self._line, self._column + at

    def _fail_at(self, message: str, at: int, near: str | None = None) -> NoReturn:
        line, column = self._place(at)
        start = self._text.rfind("\n", 0, at) + 1
        end = self._text.find("\n", at)
        shown = self._text[start : end if end >= 0 else start + 400].strip()
        _fail(
            self._path,
            line,
            self._field,
            f"line {line} is not JSON: {message} at column {column}",
            value=shown,
            expected="an array of objects",
            near=near,
        )

    def _fail_other_than_array(self) -> NoReturn:
        value = self._value()
        if self._next():
            # objects one after the other are .jsonl under the wrong name
            many = isinstance(value, dict)
            near = f"{self._path.stem}.jsonl (one object on each line)" if many else None
            self._fail_at("Extra data", self._at, near)
        held = None
        if isinstance(value, dict):
            held = nearest("data", [key for key, inner in value.items() if isinstance(inner, list)])
        _fail(
            self._path,
            1,
            self._field,
            f"the file holds {_kind(value)}, not an array of objects",
            value=sorted(value)[:8] if isinstance(value, dict) else value,
            expected=_ARRAY,
            near=f"the array under its key {held!r}" if held else None,
        )


def _read_csv(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    return _read_table(path, field, ",")


def _read_tsv(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    return _read_table(path, field, "\t")


def _read_table(path: Path, field: str, delimiter: str) -> Iterator[tuple[int, Row]]:
    # the module's limit of 128 KiB a cell is a process-wide setting: long documents exceed it
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    header: list[str] | None = None
    line = 1
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader, None)
            except UnicodeDecodeError:
                _fail_decoding(path, field)
            except csv.Error as error:
                _fail(
                    path,
                    line,
                    field,
                    f"the row at line {line} is broken: {error}",
                    expected='cells with quotes inside written as ""',
                    cause=error,
                )
            if cells is None:
                return
            if header is None:
                if any(cell.strip() for cell in cells):
                    header = _header(path, line, field, cells, delimiter)
            elif cells:  # a blank line is no row
                if len(cells) != len(header):
                    _fail(
                        path,
                        line,
                        field,
                        f"the row at line {line} has {len(cells)} cells, the header {len(header)}",
                        value=delimiter.join(cells),
                        expected=f"{len(header)} cells: {', '.join(header)}",
                    )
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1


def _header(path: Path, line: int, field: str, cells: list[str], delimiter: str) -> list[str]:
    names = [name.strip() for name in cells]
    if len(set(names)) != len(names) or "" in names:
        _fail(
            path,
            line,
            field,
            "the header has an empty name or one name twice",
            value=delimiter.join(cells),
            expected="one distinct name for each column",
        )
    return names


def _read_parquet(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    if path.stat().st_size == 0:
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RefusedError(
            f"reading {path} needs pyarrow", "pip install 'runner[train]', or convert it to .jsonl"
        ) from error
    number = 0
    try:
        # pages are read as they are needed, not a row group's columns at once
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        _fail(
            path,
            number + 1,
            field,
            f"not readable as parquet: {shorten(str(error), 200)}",
            expected="a complete parquet file",
            cause=error,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, Row]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
