"""The only module that prints; it makes foreign text safe for a terminal.

Standard library, runner.common.own_python, and rich inside a function. A terminal interprets what
it is shown: a row, a log or a run's name can set the clipboard (OSC 52), move the cursor over
earlier output, or reverse letters. So every character that a terminal could interpret is shown as
Python writes it in a string: `\\x1b`, `\\r`, `\\x9b`, `\\u202e`. These are the C0 controls but line
feed and tab, DEL, C1 (U+0080 to U+009F), lone surrogates, the marks that turn the direction of
writing (U+061C, U+200E, U+200F, U+202A to U+202E, U+2066 to U+2069), and Unicode's own line ends
(U+2028, U+2029). JSON output has the same characters as JSON's escapes. Our own colours are marks
(`ink`) that foreign text can't contain, since it can't know them.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, TextIO

from runner.common.own_python import TERMINAL_ENCODING

if TYPE_CHECKING:
    from rich.console import Console

_UNFIT = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_MARK = f"\x00{os.urandom(8).hex()}"
_UNFIT_IN_TEXT = re.compile(f"[{_UNFIT}]")
_UNFIT_IN_LINE = re.compile(f"[\t\n{_UNFIT}]")
_INKED = re.compile(f"{_MARK};([0-9;]*)m|[{_UNFIT}]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_ERASE = "\r\x1b[K"


# -- texts, pure


def clean(text: str) -> str:
    """`text` with every character that a terminal could obey made visible; lines and tabs stay.

    Idempotent: what it gives holds none of them.
    """
    return _UNFIT_IN_TEXT.sub(_visible, text)


def clean_line(text: str) -> str:
    """As `clean`, for what has to stay on one line: line feeds and tabs are made visible too."""
    return _UNFIT_IN_LINE.sub(_visible, text)


def _visible(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def indented(text: str, width: int) -> str:
    """`text` with every line but the first moved right, so that none passes for one of ours."""
    return text.replace("\n", "\n" + " " * width)


def json_text(record: object, *, indent: int | None = None) -> str:
    """`record` as JSON that a terminal can be shown: the same values, unfit characters escaped.

    A figure that is not finite, which JSON has no word for, is null.
    """
    try:
        text = json.dumps(record, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:  # what others wrote is handed on; JSON knows no NaN, and Python writes one
        finite = _without_nan(record)
        text = json.dumps(finite, indent=indent, ensure_ascii=False, allow_nan=False)
    # outside of its texts JSON has none of these but the line feeds of `indent`
    return _UNFIT_IN_TEXT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return value


def ink(code: str) -> str:
    """The mark that is printed as a colour; `code` is ANSI's ("32", "30;42", "0" for plain).

    It has a width of its own in `len`, and survives no `clean` but the one that prints.
    """
    return f"{_MARK};{code}m"


def inked(text: str) -> str:
    """As `clean`, and the marks of `ink` are colours."""
    return _INKED.sub(
        lambda found: _visible(found) if found[1] is None else f"\x1b[{found[1]}m", text
    )


# -- what prints


def never_fail() -> None:
    """What stdout and stderr have no sign for is printed as an escape, whoever prints it."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def put(text: str, *, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print to stdout: data, and what answers the command.

    `stream` is the standard output of a process that has put another in its place.
    """
    _write(stream or sys.stdout, inked(text) + end)


def put_json(record: object, *, indent: int | None = None, stream: TextIO | None = None) -> None:
    """Print one JSON document to stdout, on one line unless it is indented.

    Where stdout has not every sign of it, all that is not ASCII stands as JSON's escapes.
    """
    text = json_text(record, indent=indent)
    try:
        text.encode(getattr(stream or sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    put(text, stream=stream)


def say(text: str = "", *, end: str = "\n") -> None:
    """Print to stderr: progress, notes, errors, questions."""
    _write(sys.stderr, inked(text) + end)


def put_raw(content: bytes) -> None:
    """Hand bytes on to stdout as they are, because the user asked for just that."""
    sys.stdout.flush()
    under = getattr(sys.stdout, "buffer", None)
    if under is None:  # a test's text stream
        sys.stdout.write(content.decode(errors="replace"))
    else:
        under.write(content)
    sys.stdout.flush()


def draw_line(text: str, stream: TextIO | None = None) -> None:
    """Draw `text` in place of a terminal's present line, cut to its width; stderr by default."""
    width = shutil.get_terminal_size().columns - 1
    _write(stream or sys.stderr, _ERASE + clean_line(text)[:width])


def erase_line(stream: TextIO | None = None) -> None:
    """Take back what `draw_line` drew."""
    _write(stream or sys.stderr, _ERASE)


def console() -> Console:
    """What rich draws on, to stdout. Who draws cleans what is foreign: as Text, never as markup."""
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an encoding without bars shows "?"
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _write(stream: TextIO, text: str) -> None:
    if isinstance(stream, _Guarded):
        stream = stream.unguarded
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a terminal that is not UTF-8
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


# -- what others print in our processes


class _Guarded:
    """A text stream that cleans what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        # a bar of tqdm goes back to the line's begin in a write of its own
        start = "\r" if text.startswith("\r") else ""
        self.unguarded.write(start + clean(text.removeprefix("\r")))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.unguarded, name)


def guard_streams(*of_terminal: str) -> None:
    """Clean what libraries print in this process too: they name rows, models and files.

    For the engine's processes that are given the user's terminal; native code is not reached.
    stderr is the user's own, and what else `of_terminal` names ("stdin", "stdout"): they get the
    encoding that the user's has. All else stays UTF-8, for the process that reads it.
    """
    encoding = os.environ.pop(TERMINAL_ENCODING, None)
    for name in {"stderr", *of_terminal} if encoding else ():
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))
