"""Rows of a Parquet file, a batch at a time; a value that Python can't hold is no error by itself.

Imports the standard library and this package's `row_errors`; pyarrow when rows are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runner.common.errors import RefusedError
from runner.data.row_errors import fail, shorten

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 1000


class Unreadable:
    """Stands for a value that has no form in Python (a date beyond year 9999, broken UTF-8).

    It is no text, no number and no list: where a row's value is used it is refused, with its line.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __repr__(self) -> str:
        return f"(a {self._kind} that can't be read)"

    __str__ = __repr__


def read_parquet(path: Path, field: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(1-based row number, row); SpecError where the file is broken or names a column twice."""
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
            _refuse_twice(path, field, table.schema_arrow)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                names = batch.schema.names
                columns = [_values(column) for column in batch.columns]
                for index in range(batch.num_rows):
                    number += 1
                    yield (
                        number,
                        {name: column[index] for name, column in zip(names, columns, strict=True)},
                    )
    except (pyarrow.ArrowException, OSError) as error:
        fail(
            path,
            number + 1,
            field,
            f"not readable as parquet: {shorten(str(error), 200)}",
            expected="a complete parquet file",
            cause=error,
        )


def _refuse_twice(path: Path, field: str, schema: pyarrow.Schema) -> None:
    """Refuse a column, or a field of a nested one, of which there are two of one name."""
    waiting = [("", list(schema))]
    while waiting:
        place, fields = waiting.pop()
        names = Counter(each.name for each in fields)
        for name, times in names.items():
            if times > 1:
                fail(
                    path,
                    None,
                    field,
                    f"the column {place}{name!r} is there {times} times"
                    if not place
                    else f"{place} holds the field {name!r} {times} times",
                    value=", ".join(each.name for each in fields),
                    expected="one distinct name for each column",
                )
        for each in fields:
            inner = [each.type.field(index) for index in range(each.type.num_fields)]
            if inner:
                waiting.append((f"{place}.{each.name}".lstrip("."), inner))


def _values(column: pyarrow.ChunkedArray) -> list[object]:
    """A column's values as Python has them, each by itself where not all can be."""
    import pyarrow

    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, TypeError, ImportError, pyarrow.ArrowException):
        return [_value(one, str(column.type)) for one in column]


def _value(one: pyarrow.Scalar, kind: str) -> object:
    import pyarrow

    try:
        return one.as_py()
    except (ValueError, OverflowError, TypeError, ImportError, pyarrow.ArrowException):
        return Unreadable(kind)
