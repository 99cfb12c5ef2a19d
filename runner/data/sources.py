"""List the sources of a plan's rows, identify their content, read them.

Imports the standard library and this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.common.caches import file_sha256
from runner.common.errors import RefusedError
from runner.data.columns import renamed
from runner.data.dialect import WORDS
from runner.data.hub import read_hub
from runner.data.read import ReadOptions, Row, read_rows, table_record
from runner.data.report_types import TableRecord
from runner.data.row_index import EVAL, TEST, TRAIN
from runner.data.rows_plan import RowsPlan
from runner.data.tables import TableOptions
from runner.jobs.data import DataSettings, TableSettings
from runner.plans.rows import PlannedData


@dataclass(frozen=True)
class Source:
    """One source of rows and the part it plays."""

    planned: PlannedData
    field: str
    role: str  # train, mixed, eval, test
    hub_split: str
    ratio: float | None = None

    @property
    def place(self) -> str:
        if self.planned.kind == "file":
            return str(self.planned.path)
        return f"{self.planned.kind}:{self.planned.id}"

    @property
    def split(self) -> int:
        return {"eval": EVAL, "test": TEST}.get(self.role, TRAIN)


def sources_of(plan: RowsPlan) -> list[Source]:
    rows, data = plan.rows, plan.data
    mix = data.mix
    out = [Source(rows.train, "data.train", "train", data.hub.split, mix.ratio if mix else None)]
    for index, planned in enumerate(rows.mixed):
        ratio = mix.sources[index].ratio if mix else None
        name = f"data.mix.sources.{index}.rows"
        out.append(Source(planned, name, "mixed", data.hub.split, ratio))
    if rows.eval is not None:
        out.append(Source(rows.eval, "data.eval", "eval", data.hub.eval_split))
    if rows.test is not None:
        out.append(Source(rows.test, "data.test", "test", data.hub.test_split))
    return out


def identity_of(plan: RowsPlan, source: Source) -> list[object] | None:
    """What tells a source's content; None where only reading it can."""
    planned = source.planned
    if planned.path is None:
        pinned = len(planned.revision or "") == 40  # a commit, not a branch that may move
        name = plan.data.hub.name
        where: list[object] = [planned.kind, planned.id, planned.revision, name, source.hub_split]
        return where if pinned else None
    path = Path(planned.path)
    root = str(image_root(plan, source)) if plan.vision else None
    return [path.suffix.lower(), planned.sha256 or file_sha256(path), root]


def rows_of(plan: RowsPlan, source: Source) -> Iterator[tuple[int, Row]]:
    planned = source.planned
    if planned.path is None and planned.kind == "modelscope":
        raise RefusedError(
            f"the rows of modelscope:{planned.id} are not on this machine",
            f"runner fetch {plan.job} brings them",
        )
    if planned.path is None:
        name = plan.data.hub.name
        found = read_hub(planned.id or "", planned.revision, name, source.hub_split)
        return renamed(found, plan.data.columns, source.place)
    path = Path(planned.path)
    if planned.sha256 is not None and path.is_file() and file_sha256(path) != planned.sha256:
        raise RefusedError(
            f"{path} was changed since the plan was made (its sha256 is another)",
            "start the job anew, so that the plan names the rows it trains on",
        )
    return read_rows(path, source.field, reading_of(plan.data))


def reading_of(data: DataSettings) -> ReadOptions:
    """What a job says of how its files are written."""
    return ReadOptions(table_options(data.table), data.columns)


def table_options(table: TableSettings) -> TableOptions:
    """data.table as the readers take it."""
    delimiter = next((mark for mark, word in WORDS.items() if word == table.delimiter), "auto")
    return TableOptions(delimiter, table.quote, table.escape, table.encoding)


def table_of(plan: RowsPlan, source: Source) -> TableRecord | None:
    """How a CSV or TSV source is written, for the report; None for others."""
    if source.planned.path is None:
        return None
    return table_record(Path(source.planned.path), reading_of(plan.data), source.field)


def image_root(plan: RowsPlan, source: Source) -> Path:
    """What image paths start from; a relative data.image_folder lies beside the rows."""
    beside = Path(source.planned.path).parent if source.planned.path else Path.cwd()
    return beside / Path(plan.data.image_folder or "").expanduser()
