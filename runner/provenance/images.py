"""The images that a plan's rows name: which files they are. Reads the rows; no image is opened.

Imports the plan and runner.engine.data (no training library; pyarrow for rows in Parquet).
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from runner.engine.data.formats import image_names
from runner.engine.data.read import read_rows
from runner.engine.data.sources import image_root, sources_of
from runner.plan import Plan


def first_root(training: Plan) -> Path | None:
    """The folder that the names in a training's own rows start from; None of rows on a hub."""
    own = sources_of(training)[0]
    return image_root(training, own) if own.planned.path is not None else None


def named(plan: Plan, phase: str) -> dict[tuple[str, str], Path]:
    """(field of the source, name as its rows write it) -> the file, of all images of a training.

    Those that are not there are left out: of rows without an answer nobody looks for them. Raises
    RunnerError as read_rows.
    """
    (training,) = (each for each in plan.trainings if each.phase == phase)
    found: dict[tuple[str, str], Path] = {}
    for source in sources_of(training):
        if source.planned.path is None:
            continue
        root = image_root(training, source)
        rows = read_rows(Path(source.planned.path), source.field)
        for _, row in islice(rows, training.data.max_rows):
            for name in image_names(row) or ():
                if (place := root / name).is_file():
                    found[source.field, name] = place
    return found
