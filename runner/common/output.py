"""The one way the commands print: data to stdout; progress, notes and errors to stderr.

Standard library and runner.common.terminal, which makes all text safe for a terminal; rich is
imported by the few views that draw.
"""

from __future__ import annotations

import os
import sys

from runner.common import terminal


class Output:
    """Human text, or one JSON document on stdout with everything else on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def result(self, record: object, lines: list[str]) -> None:
        """The command's result: `record` as JSON, or `lines` for people."""
        if self.as_json:
            terminal.put_json(record, indent=2)
        else:
            terminal.put("\n".join(lines))

    def say(self, line: str) -> None:
        """Progress or a note; never part of the data."""
        terminal.say(line)


def field(label: str, text: str) -> str:
    """A quiet two-column line: "plan       3f2a91c"; further lines of `text` stand under it."""
    return f"{label:<10} {terminal.indented(text, 11)}"


def colour() -> bool:
    """Whether stdout takes colour: a terminal, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Left-aligned columns, wide as their widest cell; the last column is not padded."""
    shown = [[terminal.clean_line(str(cell)) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
    out = []
    for row in shown:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        out.append("  ".join(cells).rstrip())
    return out
