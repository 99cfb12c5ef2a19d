"""A table in DuckDB with a line for each row of the job's data, and the steps' way to change it.

It holds keys and counts, never the rows' text, and spills to disk beyond MEMORY_LIMIT, so that ten
million rows need no more memory than ten thousand. Imports the standard library; duckdb, numpy and
pyarrow when it is opened. Knows no files of rows. What is decided by it: see `row_index`.
"""
# ruff: noqa: S608 - only numbers and names of our own are written into the statements

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import duckdb
    import numpy
    import pyarrow
    from numpy.typing import NDArray


from runner.data.report_types import LeftOutRecord

MEMORY_LIMIT = "300MB"
THREADS = 2
NAMED = 10  # rows that a report names


@dataclass(frozen=True)
class Lines:
    """The columns of some rows, column by column."""

    first_id: int  # ids count from 0 over all sources
    lines: Sequence[int]  # line or row number in the source
    prompts: Sequence[bytes]  # compare.match_keys
    rows: Sequence[bytes]
    exact_prompts: Sequence[bytes]  # compare.match_keys by the default rule
    exact_rows: Sequence[bytes]
    loose_prompts: Sequence[bytes]  # keys.row_keys, by which the draws and earlier runs go
    loose_rows: Sequence[bytes]
    split_draws: (
        NDArray[numpy.uint64] | None
    )  # keys.draw_numbers of the loose prompts; None: rows are not split
    mix_draws: NDArray[numpy.uint64] | None  # of the rows; None: rows are not mixed
    labels: Sequence[str | None]
    strata: Sequence[str | None]
    characters: Sequence[int]


@dataclass(frozen=True)
class LeftOut:
    """Rows of one source that a step left out: how many, the first lines, and for each of these
    the row that it repeats (or contradicts, or leaks to): (index of its source, line).
    """

    rows: int
    first_lines: list[int]
    others: list[tuple[int, int]] = field(default_factory=list)

    def and_also(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            self.rows + other.rows,
            (self.first_lines + other.first_lines)[:NAMED],
            (self.others + other.others)[:NAMED],
        )

    def record(self) -> LeftOutRecord:
        record: LeftOutRecord = {"rows": self.rows, "first_lines": self.first_lines}
        if self.others:
            record["first_repeat"] = [
                {"source": source, "line": line} for source, line in self.others
            ]
        return record


class RowTable:
    """Made in `folder`, which is the caller's to remove: entries, and which of them were left out.

    `entries` is what goes on; `left_out` what a step took from it, and why.
    """

    def __init__(self, folder: Path) -> None:
        import duckdb

        self.database = duckdb.connect(
            str(folder / "ledger.duckdb"),
            config={
                "memory_limit": MEMORY_LIMIT,
                "threads": THREADS,
                "temp_directory": str(folder / "spill"),
                "preserve_insertion_order": False,
            },
        )
        self.run(
            'CREATE TABLE entries (id BIGINT, source USMALLINT, line BIGINT, prompt UUID, "row" '
            "UUID, exact_prompt UUID, exact_row UUID, loose_prompt UUID, loose_row UUID, "
            "split_draw UBIGINT, mix_draw UBIGINT, label VARCHAR, stratum VARCHAR, "
            "characters BIGINT)"
        )
        self.run(
            "CREATE TABLE left_out (why VARCHAR, source USMALLINT, line BIGINT, id BIGINT, "
            "other_source USMALLINT, other_line BIGINT)"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.database.close()

    def add(self, source: int, lines: Lines) -> None:
        """Enter rows of the source with that index."""
        import numpy
        import pyarrow

        number = len(lines.lines)
        none = pyarrow.nulls(number, pyarrow.uint64())
        self.insert(
            "entries",
            pyarrow.table(
                {
                    "id": numpy.arange(lines.first_id, lines.first_id + number),
                    "source": numpy.full(number, source, dtype="u2"),
                    "line": pyarrow.array(lines.lines, pyarrow.int64()),
                    "prompt": _uuids(lines.prompts),
                    "row": _uuids(lines.rows),
                    "exact_prompt": _uuids(lines.exact_prompts),
                    "exact_row": _uuids(lines.exact_rows),
                    "loose_prompt": _uuids(lines.loose_prompts),
                    "loose_row": _uuids(lines.loose_rows),
                    "split_draw": none if lines.split_draws is None else lines.split_draws,
                    "mix_draw": none if lines.mix_draws is None else lines.mix_draws,
                    "label": pyarrow.array(lines.labels, pyarrow.string()),
                    "stratum": pyarrow.array(lines.strata, pyarrow.string()),
                    "characters": pyarrow.array(lines.characters, pyarrow.int64()),
                }
            ),
        )

    def write_left_out(self, path: Path, places: Sequence[str]) -> int:
        """Write a JSON object for each row that was left out, in order; how many.

        `places` names each source. The row that it repeats, contradicts or leaks to is beside it.
        """
        import pyarrow

        number = self.read_number("SELECT count(*) FROM left_out")
        named = {"source": pyarrow.array(range(len(places)), pyarrow.uint16()), "place": places}
        self.run("CREATE TABLE places (source USMALLINT, place VARCHAR)")
        self.insert("places", pyarrow.table(named))
        quoted = str(path).replace("'", "''")
        self.run(
            "COPY (SELECT l.why, p.place AS file, l.line, o.place AS other_file, l.other_line "
            "FROM left_out l JOIN places p ON l.source = p.source "
            "JOIN places o ON l.other_source = o.source ORDER BY l.id, l.why) "
            f"TO '{quoted}' (FORMAT json)"
        )
        return number

    def leave_out(self, why: str, query: str) -> dict[int, LeftOut]:
        """Leave out the rows that `query` gives (id, source, line, other_source, other_line)."""
        self.run(f"CREATE TABLE leaving AS {query}")
        counts = self.read_all(
            "SELECT source, count(*) FROM leaving GROUP BY source ORDER BY source"
        )
        left_out = {}
        for source, number in counts:
            first = self.read_all(
                f"SELECT line, other_source, other_line FROM leaving WHERE source = {source} "
                f"ORDER BY id LIMIT {NAMED}"
            )
            left_out[source] = LeftOut(
                number, [line for line, *_ in first], [(there, line) for _, there, line in first]
            )
        if counts:
            self.run(
                f"INSERT INTO left_out SELECT '{why}', source, line, id, other_source, other_line "
                "FROM leaving"
            )
            self.keep("SELECT entries.* FROM entries ANTI JOIN leaving USING (id)")
        self.run("DROP TABLE leaving")
        return left_out

    def keep(self, query: str) -> None:
        """Replace the entries by the result of `query`."""
        self.run(f"CREATE TABLE next AS {query}")
        self.run("DROP TABLE entries")
        self.run("ALTER TABLE next RENAME TO entries")

    def insert(self, table: str, rows: pyarrow.Table) -> None:
        self.database.register("arriving", rows)
        self.run(f"INSERT INTO {table} SELECT * FROM arriving")
        self.database.unregister("arriving")

    def run(self, statement: str) -> duckdb.DuckDBPyConnection:
        return self.database.execute(statement)

    def read_all(self, query: str) -> list[tuple[Any, ...]]:
        return list(self.run(query).fetchall())

    def read_number(self, query: str) -> int:
        return int(self.run(query).fetchone()[0])


def _uuids(keys: Sequence[bytes]) -> pyarrow.Array:
    """128-bit keys as an Arrow array that DuckDB takes for its 128-bit UUID."""
    import pyarrow

    raw = pyarrow.py_buffer(b"".join(keys))
    stored = pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(16), len(keys), [None, raw])
    return pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), stored)
