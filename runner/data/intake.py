"""What is asked of one source of rows.

Imports the standard library and this package's `compare` and `formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runner.data.compare import DEFAULT
from runner.data.formats import FormatOptions


@dataclass(frozen=True)
class Intake:
    """What is asked of one source."""

    index: int  # in the order of the report's sources
    field: str  # the job's field that names it
    place: str  # how errors and the report name it
    format: str  # data.format
    options: FormatOptions
    image_root: Path  # what relative image paths start from
    max_rows: int | None
    stratify: str | None  # key of the rows whose value is their stratum; None: they are not split
    split_seed: int | None  # None: rows are not split
    mix_seed: int | None  # None: rows are not mixed
    ignore: tuple[str, ...] = DEFAULT  # data.clean.ignore: what does not count in comparisons
