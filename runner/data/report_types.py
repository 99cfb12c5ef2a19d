"""Types of the report of prepared rows: report.json, and `prepared` in data.json (docs/data.md).

Imports the standard library. Keys that reports of earlier versions lack are not required.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Required, TypedDict


class RowPlace(TypedDict):
    """A row: the index of its source, and its line."""

    source: int
    line: int


class LeftOutRecord(TypedDict, total=False):
    """Rows that a step left out, the first lines, and the rows that these repeat."""

    rows: Required[int]
    first_lines: Required[list[int]]
    first_repeat: list[RowPlace]


class TableRecord(TypedDict, total=False):
    """How a CSV or TSV file was read."""

    delimiter: Required[str]
    quote: Required[str]
    escape: Required[str | None]
    encoding: Required[str]
    byte_order_mark: Required[bool]
    line_end: Required[str]
    because: Required[str]
    columns: Required[list[str]]
    lines: Required[int]
    blank_lines: Required[int]
    delimiter_line: bool
    rows: Required[int]
    quoted: LeftOutRecord
    with_line_breaks: Required[LeftOutRecord]
    with_tabs: Required[LeftOutRecord]
    joined_lines: Required[LeftOutRecord]


class NotesRecord(TypedDict, total=False):
    """What rows of a source hold beside texts; keys that nothing reads, and how many have them."""

    unused: dict[str, int]
    marks: dict[str, dict[str, int]]
    untrained_turns: int
    reasoning_turns: int
    tool_call_turns: int
    rows_with_tools: int
    rows_filled_with_nulls: int


class SourceRecord(NotesRecord, total=False):
    """A source's way through."""

    role: Required[str]
    field: Required[str]
    place: Required[str]
    sha256: str | None
    format: Required[str]
    because: Required[str]
    read: Required[int]
    empty: Required[LeftOutRecord]
    untrained: LeftOutRecord
    duplicates: LeftOutRecord
    conflicts: LeftOutRecord
    leaked: LeftOutRecord
    train: int
    eval: int
    test: int
    drawn: int
    table: TableRecord | None


class NearPair(TypedDict):
    """A held-out row, and the training row that it nearly repeats."""

    side: str
    source: int
    line: int
    train_source: int
    train_line: int
    similarity: float


class NearRecord(TypedDict, total=False):
    """Held-out rows that nearly repeat training rows; looked_at is None where none was compared."""

    similarity: Required[float]
    rule: str
    looked_at: Required[dict[str, int] | None]
    because: str
    too_short: int
    rows: dict[str, int]
    first: list[NearPair]
    seconds: float


class PortionRecord(TypedDict):
    """What a mix takes of a source."""

    source: int
    rows: int
    drawn: int
    times: int
    once_more: int
    words: str


class MixRecord(TypedDict):
    """How sources were mixed."""

    fit: str
    seed: int
    ratio: str
    portions: list[PortionRecord]


class PreparedRecord(TypedDict, total=False):
    """The whole report; `leakage` has a count for each pair of splits beside its rule."""

    sources: Required[list[SourceRecord]]
    sides: Required[dict[str, int]]
    leakage: Required[Mapping[str, object]]
    near_duplicates: NearRecord | None
    mix: Required[MixRecord | None]
    images: Mapping[str, object] | None
