"""Errors that name the file, the line, the value and the way out; shared by the readers of rows.

Imports the standard library and runner.common.errors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from runner.common.errors import Problem, SpecError


def shorten(value: object, limit: int = 80) -> str:
    """A value as one line of at most `limit` characters, for error messages."""
    text = value if isinstance(value, str) else _as_json(value)
    # a lone surrogate can't be printed; show it as its escape instead
    text = text[: 8 * limit].encode("utf-8", "backslashreplace").decode("utf-8")
    text = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # a key that is no text, a cycle, depth
        return f"a value of type {type(value).__name__}"


def fail(
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
    """Raise SpecError with one Problem at `path`, or at a line (or row) of it."""
    where = str(path) if line is None else f"{path}:{line}"
    shown = None if value is None else shorten(value)
    raise SpecError([Problem(where, field, problem, shown, expected, near)]) from cause


def decode(
    path: Path, field: str, raw: bytes, line: int | None, offset: int, way_out: str = ""
) -> str:
    """UTF-8 text of bytes that start at `offset` of the file; says which byte is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        if line is None:
            line = raw[: error.start].count(b"\n") + 1
        utf16 = offset == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        fail(
            path,
            line,
            field,
            f"not UTF-8: byte 0x{raw[error.start]:02x} at byte offset {at}",
            expected="UTF-8" + (" (the file looks like UTF-16: convert it)" if utf16 else way_out),
            cause=error,
        )


def fail_decoding(path: Path, field: str, way_out: str = "") -> NoReturn:
    """Name the first byte of the file that is not UTF-8, which a buffered reader can't."""
    offset = 0
    with path.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            decode(path, field, raw, line, offset, way_out)
            offset += len(raw)
    raise AssertionError(f"{path} is UTF-8 after all")
