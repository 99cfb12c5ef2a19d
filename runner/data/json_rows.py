"""Rows of JSON: an object on each line, or an array of objects. Streams.

Imports the standard library and this package's `strict_json` and `row_errors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NoReturn, TextIO

from runner.common.errors import nearest
from runner.data.row_errors import decode, fail, fail_decoding
from runner.data.strict_json import DECODER, MOST_LEVELS, DuplicateKeyError, cut_deep, loads

Row = dict[str, object]

MAX_ROW_CHARACTERS = 256 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_ARRAY = "an array of objects: [{...}, {...}]"
_BUFFER_CHARACTERS = 1 << 20
_LOOKAHEAD = 16  # more than the longest thing but a string that JSON's grammar has: \\ud83d\\ude00
_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_ONE_KEY = "each key once in an object"


def read_jsonl(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    offset = 0
    with path.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            start, offset = offset, offset + len(raw)
            if line == 1 and raw.startswith(_BOM):
                raw, start = raw[len(_BOM) :], len(_BOM)
            text = decode(path, field, raw, line, start)
            if not text.strip():
                continue
            try:
                row = loads(text)
            except DuplicateKeyError as error:
                fail(
                    path,
                    line,
                    field,
                    f"line {line} holds the key {error.key!r} twice in one object",
                    value=text.strip(),
                    expected=_ONE_KEY,
                    cause=error,
                )
            except (json.JSONDecodeError, RecursionError) as error:
                fail(
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
                fail(
                    path,
                    line,
                    field,
                    f"line {line} is {_kind(row)}, not a JSON object",
                    value=text.strip(),
                    expected="one JSON object on each line",
                )
            yield line, row


def read_json(path: Path, field: str) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from _Array(path, field, stream).rows()
        except UnicodeDecodeError:
            fail_decoding(path, field)


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
                    fail(
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

    def _value(self) -> object:
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # only what stands well before the buffer's end is wrong whatever comes behind it
                open_ended = error.msg.startswith("Unterminated string")
                if self._ended or not (open_ended or error.pos > len(self._text) - _LOOKAHEAD):
                    self._fail_at(error.msg, error.pos)
            except DuplicateKeyError as error:
                self._fail_duplicate(error)
            except RecursionError as error:
                if (cut := self._cut()) is not None:
                    return cut
                if self._ended:
                    self._fail_depth(error)
            else:
                if self._ended or end < len(self._text):
                    opened = sum(self._text.count(mark, self._at, end) for mark in "[{")
                    if opened > MOST_LEVELS and (cut := self._cut()) is not None:
                        return cut
                    self._at = end
                    return value
            self._more()

    def _cut(self) -> object:
        """The value here without what is nested too deep, taken; None where it does not end."""
        found = cut_deep(self._text, self._at)
        if found is None:
            return None
        text, end = found
        try:
            value = DECODER.decode(text)
        except json.JSONDecodeError as error:  # a place in the text as cut is none in the file
            self._fail_at(error.msg, self._at)
        except DuplicateKeyError as error:
            self._fail_duplicate(error)
        self._at = end
        return value

    def _fail_duplicate(self, error: DuplicateKeyError) -> NoReturn:
        line, _ = self._place(self._at)
        fail(
            self._path,
            line,
            self._field,
            f"the row at line {line} holds the key {error.key!r} twice in one object",
            value=self._text[self._at : self._at + 400],
            expected=_ONE_KEY,
            cause=error,
        )

    def _fail_depth(self, error: RecursionError) -> NoReturn:
        line = self._place(self._at)[0]
        fail(
            self._path,
            line,
            self._field,
            f"line {line} is not JSON: nested too deeply",
            expected="an array of objects",
            cause=error,
        )

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
        fail(
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
        fail(
            self._path,
            1,
            self._field,
            f"the file holds {_kind(value)}, not an array of objects",
            value=sorted(value)[:8] if isinstance(value, dict) else value,
            expected=_ARRAY,
            near=f"the array under its key {held!r}" if held else None,
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
