"""The ledger: a line in DuckDB for each row, by which rows are left out, held out and mixed.

It holds keys and counts, never the rows' text, and spills to disk beyond MEMORY_LIMIT, so that ten
million rows need no more memory than ten thousand. Imports the standard library; duckdb, numpy and
pyarrow when it is opened. Knows no files of rows.
"""
# ruff: noqa: S608 - only numbers and names of our own are written into the statements

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from runner.engine.data.split import allot, draw

MEMORY_LIMIT = "300MB"
THREADS = 2
NAMED = 10  # rows that a report names
_BATCH = 50_000

TRAIN, EVAL, TEST = 0, 1, 2


@dataclass(frozen=True)
class Lines:
    """What the ledger is told of some rows, column by column."""

    first_id: int  # ids count from 0 over all sources
    lines: Sequence[int]  # line or row number in the source
    prompts: Sequence[bytes]  # keys.row_keys
    rows: Sequence[bytes]
    split_draws: Any  # keys.draw_numbers of the prompts; None: rows are not split
    mix_draws: Any  # of the rows; None: rows are not mixed
    labels: Sequence[str | None]
    strata: Sequence[str | None]
    characters: Sequence[int]


@dataclass(frozen=True)
class LeftOut:
    """Rows of one source that a step left out: how many, and the first lines."""

    rows: int
    first_lines: list[int]

    def and_also(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.rows + other.rows, (self.first_lines + other.first_lines)[:NAMED])

    def record(self) -> dict[str, Any]:
        return {"rows": self.rows, "first_lines": self.first_lines}


class Ledger:
    """Made in `folder`, which is the caller's to remove. One step after the other, in this order:

    add, leave_out_duplicates, leave_out_conflicts, place, (hold_out,) leaks, remove_leaks, decide.
    """

    def __init__(self, folder: Path) -> None:
        import duckdb

        self._database = duckdb.connect(
            str(folder / "ledger.duckdb"),
            config={
                "memory_limit": MEMORY_LIMIT,
                "threads": THREADS,
                "temp_directory": str(folder / "spill"),
                "preserve_insertion_order": False,
            },
        )
        self._run(
            'CREATE TABLE entries (id BIGINT, source USMALLINT, line BIGINT, prompt UUID, "row" '
            "UUID, split_draw UBIGINT, mix_draw UBIGINT, label VARCHAR, stratum VARCHAR, "
            "characters BIGINT)"
        )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def add(self, source: int, lines: Lines) -> None:
        """Enter rows of the source with that index."""
        import numpy
        import pyarrow

        number = len(lines.lines)
        none = pyarrow.nulls(number, pyarrow.uint64())
        self._insert(
            "entries",
            pyarrow.table(
                {
                    "id": numpy.arange(lines.first_id, lines.first_id + number),
                    "source": numpy.full(number, source, dtype="u2"),
                    "line": pyarrow.array(lines.lines, pyarrow.int64()),
                    "prompt": _uuids(lines.prompts),
                    "row": _uuids(lines.rows),
                    "split_draw": none if lines.split_draws is None else lines.split_draws,
                    "mix_draw": none if lines.mix_draws is None else lines.mix_draws,
                    "label": pyarrow.array(lines.labels, pyarrow.string()),
                    "stratum": pyarrow.array(lines.strata, pyarrow.string()),
                    "characters": pyarrow.array(lines.characters, pyarrow.int64()),
                }
            ),
        )

    def leave_out_duplicates(self) -> dict[int, LeftOut]:
        """Of rows of one source that are alike, keep the first; source -> what was left out."""
        self._run('CREATE TABLE firsts AS SELECT min(id) AS id FROM entries GROUP BY source, "row"')
        left_out = {}
        if self._number("SELECT (SELECT count(*) FROM entries) - (SELECT count(*) FROM firsts)"):
            left_out = self._left_out("id NOT IN (SELECT id FROM firsts)")
            self._keep("SELECT entries.* FROM entries SEMI JOIN firsts USING (id)")
        self._run("DROP TABLE firsts")
        return left_out

    def leave_out_conflicts(self) -> dict[int, LeftOut]:
        """Leave out all rows of a source whose prompt has more than one answer there."""
        self._run(
            "CREATE TABLE clashing AS SELECT source, prompt FROM entries GROUP BY source, prompt "
            'HAVING min("row") <> max("row")'
        )
        left_out = self._left_out("(source, prompt) IN (SELECT (source, prompt) FROM clashing)")
        if left_out:
            self._keep("SELECT entries.* FROM entries ANTI JOIN clashing USING (source, prompt)")
        self._run("DROP TABLE clashing")
        return left_out

    def strata(self) -> int:
        """How many different values the stratify key has among the rows of source 0."""
        return self._number("SELECT count(DISTINCT stratum) FROM entries WHERE source = 0")

    def hold_out(self, eval_share: float, test_share: float) -> None:
        """Draw rows of source 0 for eval and test, by `split_draw`; equal prompts stay together.

        Where a side's share finds no group of rows small enough, it gets the smallest group that
        leaves something to train on.
        """
        self._run("CREATE TABLE held (prompt UUID, side UTINYINT)")
        self._run(
            "CREATE TABLE families AS SELECT prompt, any_value(split_draw) AS draw, count(*) AS "
            "size, coalesce(min(stratum), '') AS stratum FROM entries WHERE source = 0 "
            "GROUP BY prompt"
        )
        sizes = dict(self._all("SELECT stratum, sum(size)::BIGINT FROM families GROUP BY stratum"))
        for stratum, rooms in allot(sizes, eval_share, test_share).items():
            self._hold(draw(self._families(stratum), rooms))
        for side, share in ((EVAL, eval_share), (TEST, test_share)):
            free = "FROM families WHERE prompt NOT IN (SELECT prompt FROM held)"
            held = self._number(f"SELECT count(*) FROM held WHERE side = {side}")
            if share and not held and self._number(f"SELECT count(*) {free}") > 1:
                self._run(
                    f"INSERT INTO held SELECT prompt, {side} {free} ORDER BY size, draw, prompt "
                    "LIMIT 1"
                )
        self._run("DROP TABLE families")

    def place(self, sides: Sequence[int]) -> None:
        """Put each row on a side: that of its source, or what `hold_out` drew for source 0."""
        self._run("CREATE TABLE IF NOT EXISTS held (prompt UUID, side UTINYINT)")
        fixed = " ".join(f"WHEN {source} THEN {side}" for source, side in enumerate(sides))
        self._keep(
            "SELECT entries.*, coalesce(held.side, "
            f"CASE entries.source {fixed} END)::UTINYINT AS side "
            "FROM entries LEFT JOIN held ON entries.source = 0 AND entries.prompt = held.prompt"
        )
        self._run("DROP TABLE held")

    def leaks(self, side: int, other: int) -> tuple[int, list[tuple[int, int]]]:
        """Rows of `side` whose prompt is on the `other` side: count, first (source, line)."""
        found = (
            f"FROM entries WHERE side = {side} AND prompt IN "
            f"(SELECT prompt FROM entries WHERE side = {other})"
        )
        number = self._number(f"SELECT count(*) {found}")
        named = f"SELECT source, line {found} ORDER BY id LIMIT {NAMED}"
        return number, self._all(named) if number else []

    def remove_leaks(self, side: int, others: Sequence[int]) -> dict[int, LeftOut]:
        """Leave out the rows of `side` whose prompt is on one of the `others`."""
        shared = (
            f"side = {side} AND prompt IN "
            f"(SELECT prompt FROM entries WHERE side IN ({', '.join(map(str, others))}))"
        )
        left_out = self._left_out(shared)
        if left_out:
            self._keep(f"SELECT * FROM entries WHERE NOT ({shared})")
        return left_out

    def counts(self) -> dict[tuple[int, int], int]:
        """(source, side) -> rows, each counted once."""
        rows = self._all("SELECT source, side, count(*) FROM entries GROUP BY source, side")
        return {(source, side): number for source, side, number in rows}

    def values(
        self, column: Literal["stratum", "label"], most: int
    ) -> dict[str, dict[int, int]] | None:
        """Value -> side -> rows, before any mix; None where there are none, or over `most`.

        Strata are those of source 0; a row without the key has none.
        """
        of = f"FROM entries WHERE {column} IS NOT NULL" + (
            " AND source = 0" if column == "stratum" else ""
        )
        if not 0 < self._number(f"SELECT count(DISTINCT {column}) {of}") <= most:
            return None
        found: dict[str, dict[int, int]] = {}
        for value, side, number in self._all(
            f"SELECT {column}, side, count(*) {of} GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault(value, {})[side] = number
        return found

    def lengths(self) -> dict[int, list[tuple[int, int]]]:
        """Side -> (bits, rows): rows of 2**(bits-1)+1 to 2**bits characters, before any mix."""
        found: dict[int, list[tuple[int, int]]] = {}
        for side, bits, number in self._all(
            "SELECT side, ceil(log2(greatest(characters, 1)))::INTEGER AS bits, count(*) "
            "FROM entries GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault(side, []).append((bits, number))
        return found

    def decide(self, drawn: dict[int, tuple[int, int]]) -> None:
        """How often each row is written: once, but for training rows of the sources in `drawn`.

        `drawn`: source -> (times, more): each row `times`, and `more` of them, drawn by `mix_draw`,
        once more.
        """
        self._run("CREATE TABLE more (id BIGINT)")
        for source, (_, more) in drawn.items():
            if more:
                self._run(
                    f"INSERT INTO more SELECT id FROM entries WHERE side = {TRAIN} AND "
                    f"source = {source} ORDER BY mix_draw, id LIMIT {more}"
                )
        fixed = " ".join(f"WHEN {source} THEN {times}" for source, (times, _) in drawn.items())
        times = (
            f"CASE WHEN side = {TRAIN} THEN CASE source {fixed} ELSE 1 END ELSE 1 END"
            if drawn
            else "1"
        )
        self._keep(
            f'SELECT id, source, side, prompt, "row", ({times} + (more.id IS NOT NULL)::INTEGER)'
            "::INTEGER AS times FROM entries LEFT JOIN more USING (id) ORDER BY id"
        )
        self._run("DELETE FROM entries WHERE times = 0")

    def decided(self, first: int, stop: int) -> tuple[Any, Any, Any]:
        """numpy arrays (id, side, times) of the rows from `first` to before `stop`, by id."""
        found = self._run(
            f"SELECT id, side, times FROM entries WHERE id >= {first} AND id < {stop} ORDER BY id"
        ).fetchnumpy()
        return found["id"], found["side"], found["times"]

    def write_hashes(self, side: int, path: Path) -> None:
        """The prompt and row keys of a side's rows, each row once however often it is written."""
        quoted = str(path).replace("'", "''")
        self._run(
            f'COPY (SELECT prompt, "row" FROM entries WHERE side = {side}) '
            f"TO '{quoted}' (FORMAT parquet)"
        )

    def _families(self, stratum: str) -> Iterator[tuple[str, int]]:
        """(prompt as text, rows) of a stratum in drawn order."""
        # a cursor of its own, since other statements run while it is read
        with self._database.cursor() as cursor:
            cursor.execute(
                "SELECT prompt::VARCHAR, size FROM families WHERE stratum = $1 "
                "ORDER BY draw, prompt",
                [stratum],
            )
            while rows := cursor.fetchmany(_BATCH):
                yield from rows

    def _hold(self, chosen: Iterator[tuple[str, int]]) -> None:
        import pyarrow

        prompts: list[str] = []
        sides: list[int] = []

        def flush() -> None:
            sided = {"prompt": prompts, "side": pyarrow.array(sides, pyarrow.uint8())}
            self._insert("held", pyarrow.table(sided))
            prompts.clear()
            sides.clear()

        for prompt, side in chosen:
            prompts.append(prompt)
            sides.append(side)
            if len(prompts) == _BATCH:
                flush()
        if prompts:
            flush()

    def _left_out(self, condition: str) -> dict[int, LeftOut]:
        found = f"FROM entries WHERE {condition}"
        counts = dict(self._all(f"SELECT source, count(*) {found} GROUP BY source ORDER BY source"))
        return {
            source: LeftOut(
                number,
                [
                    line
                    for (line,) in self._all(
                        f"SELECT line {found} AND source = {source} ORDER BY id LIMIT {NAMED}"
                    )
                ],
            )
            for source, number in counts.items()
        }

    def _keep(self, query: str) -> None:
        """Go on with what `query` gives in place of the entries."""
        self._run(f"CREATE TABLE next AS {query}")
        self._run("DROP TABLE entries")
        self._run("ALTER TABLE next RENAME TO entries")

    def _insert(self, table: str, rows: Any) -> None:
        self._database.register("arriving", rows)
        self._run(f"INSERT INTO {table} SELECT * FROM arriving")
        self._database.unregister("arriving")

    def _run(self, statement: str) -> Any:
        return self._database.execute(statement)

    def _all(self, query: str) -> list[Any]:
        return list(self._run(query).fetchall())

    def _number(self, query: str) -> int:
        return int(self._run(query).fetchone()[0])


def _uuids(keys: Sequence[bytes]) -> Any:
    """128-bit keys as an Arrow array that DuckDB takes for its 128-bit UUID."""
    import pyarrow

    raw = pyarrow.py_buffer(b"".join(keys))
    stored = pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(16), len(keys), [None, raw])
    return pyarrow.ExtensionArray.from_storage(pyarrow.uuid(), stored)
