"""The images that a plan's rows name: which files they are. Reads the rows; no image is opened.

Imports the plan and runner.data (no training library; pyarrow for rows in Parquet).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from runner.data.formats import image_names
from runner.data.read import read_rows
from runner.data.sources import image_root, reading_of, sources_of
from runner.engines.sft.plan import Plan


def first_root(training: Plan) -> Path | None:
    """The folder that the names in a training's own rows start from; None of rows on a hub."""
    own = sources_of(training)[0]
    return image_root(training, own) if own.planned.path is not None else None


@dataclass(frozen=True)
class Named:
    """The images of one source of rows."""

    field: str
    """The source's, in the job."""
    root: Path
    names: list[str]
    """As the rows write them, sorted; those that are not there are left out: of rows without an
    answer nobody looks for them."""

    def files(self) -> Iterator[tuple[str, Path]]:
        """(what tells an image among those of a training, the file)."""
        for name in self.names:
            yield f"{self.field} {name}", self.root / name


def named(plan: Plan, phase: str) -> list[Named]:
    """The images of a training, source by source. Raises RunnerError as read_rows."""
    (training,) = (each for each in plan.trainings if each.phase == phase)
    found = []
    for source in sources_of(training):
        if source.planned.path is None:
            continue
        root = image_root(training, source)
        rows = read_rows(Path(source.planned.path), source.field, reading_of(training.data))
        names = {
            name
            for _, row in islice(rows, training.data.max_rows)
            for name in image_names(row) or ()
        }
        there = [name for name in sorted(names) if (root / name).is_file()]
        found.append(Named(source.field, root, there))
    return found
