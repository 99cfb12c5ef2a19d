"""Read rows from a data file, and name the exact place where one is broken.

Imports the standard library and this package's readers; pyarrow (parquet) only when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from runner.common.errors import nearest
from runner.data.columns import renamed
from runner.data.json_rows import read_json, read_jsonl
from runner.data.parquet_rows import read_parquet
from runner.data.report_types import TableRecord
from runner.data.row_errors import fail, shorten
from runner.data.tables import AS_TOLD, USUAL, TableOptions, look_at, read_table

__all__ = ["ReadOptions", "Row", "read_rows", "shorten", "table_record"]

Row = dict[str, object]


@dataclass(frozen=True)
class ReadOptions:
    """What a job says of how its files are written (data.table, data.columns)."""

    table: TableOptions = AS_TOLD
    columns: Mapping[str, str] = field(default_factory=dict)  # our name -> the file's


AS_THEY_ARE = ReadOptions()
"""Columns by their own names, and how a table is written told from its file."""


def read_rows(
    path: Path, field: str = "data.train", options: ReadOptions = AS_THEY_ARE
) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a .json, .jsonl, .ndjson, .csv, .tsv or .parquet file.

    The number is 1-based: the line in a .jsonl, .ndjson, .csv or .tsv file (a header is line 1),
    the row in a .json array or a .parquet file. `field` is the job's field that names the file,
    `options` what the job says of how files are written. No column or key is there twice.

    The file is looked at on the first row asked for, not at the call. Raises SpecError, with one
    Problem, where the file is missing, empty, of an unknown kind, not UTF-8 or broken.
    """
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        fail(
            path,
            None,
            field,
            "unknown kind of data file",
            value=path.suffix or path.name,
            expected="one of " + ", ".join(KINDS),
            near=nearest(suffix, KINDS) if path.suffix else None,
        )
    if not path.is_file():
        _fail_missing(path, field)
    found = False
    try:
        rows = (
            read_table(path, field, options.table)
            if suffix in USUAL
            else _READERS[suffix](path, field)
        )
        for number, row in renamed(rows, options.columns, str(path)):
            found = True
            yield number, row
    except OSError as error:
        fail(path, None, field, f"can't be read: {error.strerror or error}", cause=error)
    if not found:
        fail(path, None, field, "the file is empty", expected="at least one row")


def _fail_missing(path: Path, field: str) -> NoReturn:
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in KINDS)
        inside = f"a file; the folder holds {shorten(', '.join(names))}" if names else "a file"
        fail(path, None, field, "is a folder", expected=inside)
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent  # name the first part of the path that does not exist
    near = nearest(missing.name, (p.name for p in missing.parent.iterdir()))
    what = "no such file" if missing == path else f"no such folder: {missing}"
    fail(
        path,
        None,
        field,
        what,
        value=path.name if missing == path else missing.name,
        near=str(missing.parent / near) if near else None,
    )


def table_record(path: Path, options: ReadOptions, of: str = "data.train") -> TableRecord | None:
    """How a CSV or TSV file is written, for the report; None for other files."""
    if path.suffix.lower() not in USUAL:
        return None
    return look_at(path, of, options.table).record()


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, Row]]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
}
KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
