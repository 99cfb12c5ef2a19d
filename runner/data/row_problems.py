"""What is wrong with a row, raised with its file, line and key.

Imports `runner.common.errors` and this package's `read`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from runner.common.errors import Problem, SpecError, nearest
from runner.data.read import shorten


class RowProblems:
    """Raises for one row, so that who reads rows says only what is wrong."""

    def __init__(self, source: str, field: str) -> None:
        self.source = source
        self.field = field
        self.number = 0  # line or row number of the row that is read now

    def fail(
        self,
        key: str,
        problem: str,
        value: object | None,
        expected: str,
        near: str | None = None,
    ) -> NoReturn:
        """Raise SpecError for `key` of the row at `number`."""
        shown = None if value is None else shorten(value)
        name = f"{self.field} -> {key}"
        where = f"{self.source}:{self.number}"
        raise SpecError([Problem(where, name, problem, shown, expected, near)])

    def text(self, row: Mapping[str, object], key: str, name: str) -> str:
        """The string under `key`, which must be there; `name` is what the user is shown."""
        if key not in row:
            self.fail(name, "is missing", sorted(row)[:8], "a string", nearest(key, row))
        value = row[key]
        if not isinstance(value, str):
            self.fail(name, "is not a string", value, "a string")
        return value
