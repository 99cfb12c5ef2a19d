"""Read prepared rows from disk, count them, compare them with those of another run.

Imports the standard library; pyarrow and duckdb when rows or hashes are read. Made by `prepare`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from runner.common import durable, staged_folder
from runner.common.errors import RefusedError
from runner.data.messages import Message, Tools
from runner.data.report_types import PreparedRecord

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

Split = Literal["train", "eval", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REPORT = "report.json"
SPLIT_HASHES = "split-sha256.json"
"""Of each split that has rows, its sha256: asked at every start, and worked out by duckdb."""
LEFT_OUT = "left-out.jsonl"
"""A line for each row that was left out as a duplicate, in conflict or leaked, with the row that it
repeats, contradicts or leaks to."""
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class PreparedRow:
    """One conversation, cleaned and on its split."""

    source: int  # index in report["sources"]
    line: int  # line or row number in that source
    messages: list[Message]
    images: list[str]  # absolute paths, in the order of the "<image>" marks
    label: str | None  # text_label: the row's label; else its value of data.split.stratify
    tools: Tools | None = None  # definitions of the tools that the row's assistant may call


@dataclass(frozen=True)
class Overlap:
    """How many of some rows were trained on."""

    rows: int  # rows looked at
    seen_prompts: int  # of these, rows whose prompt was trained on, with this answer or another
    seen_rows: int  # of these, rows trained on with the same answer

    @property
    def disjoint(self) -> bool:
        """No row's prompt was trained on."""
        return self.seen_prompts == 0


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared rows.

    SPLIT.parquet holds the rows (source, line, messages as JSON, images, label, tools as JSON), in
    training with their repeats; hashes-SPLIT.parquet the 128-bit BLAKE2b of each row's normalised
    prompt and of all its turns, each once; split-sha256.json one of each split;
    report.json what was counted on the way.
    """

    folder: Path
    places: tuple[str, ...] = ()  # where the sources lie now; empty: where they lay when prepared
    images: Mapping[str, object] | None = (
        None  # what opening the rows' images gave; None: of a text model
    )

    @cached_property
    def report(self) -> PreparedRecord:
        """What became of the rows that were read; see docs/data.md."""
        record: PreparedRecord = json.loads((self.folder / REPORT).read_text(encoding="utf-8"))
        for source, place in zip(record["sources"], self.places, strict=False):
            source["place"] = place
        if self.images is not None:
            record["images"] = self.images
        return record

    @property
    def counts(self) -> dict[Split, int]:
        """Rows of each split; 0 for a split that the job does not have."""
        return {split: int(self.report["sides"][split]) for split in SPLITS}

    def rows(self, split: Split) -> Iterator[PreparedRow]:
        """The split's rows in the order of their sources; streams, whatever their number."""
        with self._open(split) as table:
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from _rows(batch)

    def pick(self, split: Split, places: Sequence[int]) -> list[PreparedRow]:
        """The rows at these places of `rows(split)`, which ascend; others are not read."""
        picked: list[PreparedRow] = []
        wanted = list(places)
        with self._open(split) as table:
            first = 0
            for group in range(table.num_row_groups):
                stop = first + table.metadata.row_group(group).num_rows
                inside = [place - first for place in wanted if first <= place < stop]
                if inside:
                    picked += _rows(table.read_row_group(group).take(inside))
                first = stop
        return picked

    def _open(self, split: Split) -> pyarrow.parquet.ParquetFile:
        import pyarrow.parquet

        # pages are read as they are needed, not a row group's columns at once
        return pyarrow.parquet.ParquetFile(
            self.folder / f"{split}.parquet", buffer_size=1 << 20, pre_buffer=False
        )

    def split_hashes(self) -> dict[Split, str]:
        """sha256 over the sorted row hashes of each split that has rows: which rows went where.

        It is the same wherever the rows lie, and whatever pyarrow wrote them. Kept as the rows are
        prepared; of rows that an earlier version prepared, as it is asked for first.
        """
        try:
            kept: dict[Split, str] = json.loads((self.folder / SPLIT_HASHES).read_text("utf-8"))
        except FileNotFoundError:
            kept = self.keep_split_hashes()
        return kept

    def keep_split_hashes(self) -> dict[Split, str]:
        """Work out what `split_hashes` then reads, and write it where that can be done."""
        found = self._hash_splits()
        with contextlib.suppress(OSError):  # full, or a container's read-only cache: asked anew
            durable.write_json(self.folder / SPLIT_HASHES, found)
        return found

    def _hash_splits(self) -> dict[Split, str]:
        import duckdb

        found: dict[Split, str] = {}
        with (
            tempfile.TemporaryDirectory() as spill,
            duckdb.connect(
                config={"memory_limit": "400MB", "threads": 2, "temp_directory": spill}
            ) as database,
        ):
            for split in SPLITS:
                if not self.counts[split]:
                    continue
                digest = hashlib.sha256()
                asked = database.execute(
                    'SELECT "row"::VARCHAR FROM read_parquet($1) ORDER BY 1',
                    [str(self.folder / hashes_name(split))],
                )
                while rows := asked.fetchmany(ROWS_AT_ONCE):
                    digest.update("".join(f"{row[0]}\n" for row in rows).encode())
                found[split] = digest.hexdigest()
        return found

    def copy_hashes(self, folder: Path) -> None:
        """Write the rows' hashes to `folder`, whole or not at all, for `proves_disjoint` later.

        Raises OSError where it can't be written. A folder that is there is replaced.
        """
        with staged_folder.staged(folder, existing="replace") as staging:
            for split in SPLITS:
                shutil.copyfile(self.folder / hashes_name(split), staging / hashes_name(split))


def _rows(table: pyarrow.Table | pyarrow.RecordBatch) -> Iterator[PreparedRow]:
    columns = [table.column(index).to_pylist() for index in range(table.num_columns)]
    for source, line, messages, images, label, tools in zip(*columns, strict=True):
        given = None if tools is None else json.loads(tools)
        yield PreparedRow(source, line, json.loads(messages), images or [], label, given)


def hashes_name(split: Split) -> str:
    """Name of the file that holds a split's hashes, in Prepared.folder and in a run's copy."""
    return f"hashes-{split}.parquet"


def _among(column: str, exact: bool) -> str:
    """The condition that a row's key is among those trained on: by either key, where a run has
    both (runs of before had the one that leaves case and width aside alone).
    """
    found = f'"{column}" IN (SELECT "{column}" FROM read_parquet($1))'  # noqa: S608
    if exact:
        found += f" OR exact_{column} IN (SELECT exact_{column} FROM read_parquet($1))"  # noqa: S608
    return found


def proves_disjoint(trained: Path, rows: Prepared, split: Split = "test") -> Overlap:
    """Whether rows of `split` were trained on in a run.

    Args:
        trained: the folder that `copy_hashes` wrote for the run (or a Prepared's own folder).
        rows: the rows that are to be evaluated on, prepared with any job.

    Raises RefusedError where the run's hashes are not there or can't be read.
    """
    import duckdb

    seen, asked = trained / hashes_name("train"), rows.folder / hashes_name(split)
    try:
        with (
            tempfile.TemporaryDirectory() as spill,
            duckdb.connect(
                config={"memory_limit": "400MB", "threads": 2, "temp_directory": spill}
            ) as database,
        ):
            columns = database.execute("SELECT * FROM read_parquet($1) LIMIT 0", [str(seen)])
            exact = "exact_prompt" in {column[0] for column in columns.description}
            prompt, row = _among("prompt", exact), _among("row", exact)
            found = database.execute(
                f"SELECT count(*), count(*) FILTER ({prompt}), count(*) FILTER ({row}) "  # noqa: S608
                "FROM read_parquet($2)",
                [str(seen), str(asked)],
            ).fetchone()
    except duckdb.Error as error:
        raise RefusedError(
            f"the hashes of the rows that were trained on can't be read: {seen}",
            str(error).splitlines()[0],
        ) from error
    assert found is not None  # noqa: S101 - an aggregate always gives a row
    return Overlap(*map(int, found))
