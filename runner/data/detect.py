"""Tell the format of a source from the keys of its first rows.

Imports the standard library, `runner.common.errors` and this package's `formats` and `read`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runner.common.errors import Problem, SpecError, nearest
from runner.data.formats import FORMATS, REQUIRED_KEYS, Format
from runner.data.read import shorten
from runner.data.row_images import MEDIA_KEYS

SAMPLE_ROWS = 100


@dataclass(frozen=True)
class Detection:
    """Which format the sampled rows have, and why that was concluded."""

    format: Format
    because: str  # a short sentence for the user
    # Keys that hold images, video or audio in some sampled row, which not every model takes.
    media: tuple[str, ...] = ()


def detect(
    rows_sample: Sequence[Mapping[str, object]], where: str = "data", field: str = "data.format"
) -> Detection:
    """The format of the first SAMPLE_ROWS rows, told by their keys alone.

    Raises SpecError where no format fits every row, or more than one does: the keys seen and the
    nearest format are in it. `where` names the source, `field` what the user should set.
    """
    rows = rows_sample[:SAMPLE_ROWS]
    if not rows:
        raise SpecError([Problem(where, field, "no rows to tell the format from")])
    seen: dict[str, int] = {}
    for row in rows:
        for key in row:
            seen[key] = seen.get(key, 0) + 1
    keys_shown = "keys seen: " + shorten(
        ", ".join(
            k if n == len(rows) else f"{k} ({n} of {len(rows)} rows)" for k, n in seen.items()
        )
        or "none",
        300,
    )
    fitting = [name for name in FORMATS if all(_fits(row, name) for row in rows)]
    if len(fitting) > 1:
        raise SpecError(
            [
                Problem(
                    where,
                    field,
                    f"more than one format fits: {' and '.join(fitting)}",
                    keys_shown,
                    f"{field} set to the one that is meant",
                )
            ]
        )
    if not fitting:
        partly = max(FORMATS, key=lambda name: sum(_fits(row, name) for row in rows))
        count = sum(_fits(row, partly) for row in rows)
        raise SpecError(
            [
                Problem(
                    where,
                    field,
                    f"only {count} of the first {len(rows)} rows fit {partly}"
                    if count
                    else "no known format fits the rows",
                    keys_shown,
                    "; ".join(f"{n} ({', '.join(REQUIRED_KEYS[n])})" for n in FORMATS),
                    partly if count else _nearest_format(seen),
                )
            ]
        )
    name = fitting[0]
    subject = "every row has" if len(rows) < SAMPLE_ROWS else f"the first {len(rows)} rows have"
    media = tuple(key for key in MEDIA_KEYS if any(row.get(key) for row in rows))
    return Detection(name, f"{subject} {' and '.join(REQUIRED_KEYS[name])}", media)


def _fits(row: Mapping[str, object], name: Format) -> bool:
    return all(key in row for key in REQUIRED_KEYS[name])


def _nearest_format(seen: Iterable[str]) -> str | None:
    """The format most of whose keys were seen, or whose key is spelled most like one seen."""
    keys = list(seen)
    shared = {name: sum(key in keys for key in REQUIRED_KEYS[name]) for name in FORMATS}
    best = max(FORMATS, key=lambda name: shared[name])
    if shared[best]:
        missing = [key for key in REQUIRED_KEYS[best] if key not in keys]
        return f"{best}, which also needs {' and '.join(missing)}"
    owners = {key: name for name in FORMATS for key in REQUIRED_KEYS[name]}
    for key in keys:
        meant = nearest(key, owners)
        if meant:
            return f"{owners[meant]}, if {key} is its {meant}"
    return None
