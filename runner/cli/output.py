"""The one way the commands print: data to stdout; progress, notes and errors to stderr.

Standard library only; rich is imported by the few views that draw.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any


class Output:
    """Human text, or one JSON document on stdout with everything else on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, record: Any, lines: list[str]) -> None:
        """The command's result: `record` as JSON, or `lines` for people."""
        if self.as_json:
            print(_document(record))
        else:
            print("\n".join(lines))
        sys.stdout.flush()

    def say(self, line: str) -> None:
        """Progress or a note; never part of the data."""
        print(line, file=sys.stderr, flush=True)


def _document(record: Any) -> str:
    try:
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:  # what others wrote is handed on; JSON knows no NaN, and Python writes one
        return json.dumps(_without_nan(record), indent=2, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return value


def field(label: str, text: str) -> str:
    """A quiet two-column line: "plan       3f2a91c"."""
    return f"{label:<10} {text}"


def colour() -> bool:
    """Whether stdout takes colour: a terminal, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Left-aligned columns, wide as their widest cell; the last column is not padded."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    out = []
    for row in [header, *rows]:
        cells = [f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)]
        out.append("  ".join(cells).rstrip())
    return out
