"""What to say where rows lack the columns of a format: once, with the remedy. Pure.

Imports the standard library, runner.common.errors and this package's `columns` and `formats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from runner.common.errors import Problem, SpecError
from runner.data.columns import meant, remedy
from runner.data.formats import REQUIRED_KEYS, Format
from runner.data.row_errors import shorten

Rows = Sequence[Mapping[str, object]]


def require_columns(name: Format, rows: Rows, place: str, field: str) -> None:
    """Refuse (SpecError) once, not row by row, that no row has what the job's format needs."""
    names = _names(rows)
    needed = REQUIRED_KEYS[name]
    missing = [key for key in needed if key not in names]
    if missing:
        raise SpecError(
            [
                Problem(
                    place,
                    field,
                    f"no row has {' or '.join(map(repr, missing))}, which {name} rows are made of",
                    "columns: " + shorten(", ".join(names), 300),
                    f"{' and '.join(needed)}; data.columns says what the file calls them",
                    remedy(missing, names),
                )
            ]
        )


def with_remedy(error: SpecError, rows: Rows) -> SpecError:
    """The refusal of rows that no format fits, with how their columns could be named."""
    names = _names(rows)
    found: list[tuple[float, Format, list[str]]] = []
    for name, needed in REQUIRED_KEYS.items():
        missing = [key for key in needed if key not in names]
        guessed = [key for key in missing if meant(key, [each for each in names if each != key])]
        if missing and len(guessed) == len(missing):
            found.append((len(missing) / len(needed), name, missing))
    if not found:
        return error
    _, name, missing = min(found, key=lambda each: each[0])
    advice = f"{name}, with {remedy(missing, names)}"
    return SpecError(
        [
            replace(each, nearest=advice) if each.field == "data.format" else each
            for each in error.problems
        ]
    )


def _names(rows: Rows) -> list[str]:
    """Every column that the rows have, in the order that they come in."""
    return list(dict.fromkeys(name for row in rows for name in row))
