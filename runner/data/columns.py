"""Rows whose columns have other names than ours (data.columns), and which may be meant. Pure.

Imports the standard library and runner.common.errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from runner.common.errors import Problem, SpecError, nearest
from runner.data.row_errors import shorten

Row = dict[str, object]

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "text": ("review", "sentence", "content", "comment", "query", "input", "body", "document"),
    "label": ("sentiment", "class", "category", "target", "labels", "score", "intent", "rating"),
    "instruction": ("prompt", "question", "query", "input"),
    "output": ("response", "answer", "completion", "target", "reply"),
    "messages": ("conversation", "chat", "dialogue", "dialog", "turns"),
    "conversations": ("conversation", "chat", "dialogue", "dialog", "turns"),
    "images": ("image_path", "image_paths", "img", "picture", "file_name"),
}
"""What data sets in common use call the columns that we call by the key."""


def renamed(
    rows: Iterable[tuple[int, Row]], columns: Mapping[str, str], source: str
) -> Iterator[tuple[int, Row]]:
    """The rows with each column of `columns` (our name -> theirs) under our name.

    A row that lacks a column stays without. Raises SpecError where a row has a column of our name
    beside the one that is to be called so, or the first row has neither.
    """
    if not columns:
        yield from rows
        return
    theirs = set(columns.values())
    for place, (number, row) in enumerate(rows):
        for ours, other in columns.items():
            if other in row and ours in row and ours not in theirs:
                _fail(source, number, f"the row has {other!r} and {ours!r} too", ours, other, row)
            if not place and other not in row and ours not in row:
                _fail(source, number, f"the row has no {other!r}", ours, other, row)
        kept = {key: value for key, value in row.items() if key not in theirs}
        yield number, kept | {ours: row[other] for ours, other in columns.items() if other in row}


def _fail(
    source: str, number: int, problem: str, ours: str, other: str, row: Mapping[str, object]
) -> None:
    raise SpecError(
        [
            Problem(
                f"{source}:{number}",
                f"data.columns.{ours}",
                problem,
                other,
                "a column of the rows: " + shorten(", ".join(row), 200),
                nearest(other, [key for key in row if key != ours]),
            )
        ]
    )


def meant(ours: str, names: Sequence[str]) -> str | None:
    """The column that most likely is what we call `ours`, by spelling or usual names."""
    known = [each.lower() for each in SYNONYMS.get(ours, ())]
    for name in sorted(
        (each for each in names if each.lower() in known),
        key=lambda each: known.index(each.lower()),
    ):
        return name
    near = nearest(ours, names, 0.7)
    if near:
        return near
    return next((each for each in names if any(word in each.lower() for word in known)), None)


def remedy(missing: Sequence[str], names: Sequence[str]) -> str:
    """The line of a job that names the columns: "data.columns: {text: review}"."""
    left = [name for name in names if name not in missing]
    pairs = []
    for ours in missing:
        name = meant(ours, left)
        if name is not None:
            left.remove(name)
        pairs.append(f"{ours}: {name or 'COLUMN'}")
    return f"data.columns: {{{', '.join(pairs)}}}"
