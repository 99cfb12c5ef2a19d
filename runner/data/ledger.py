"""The ledger: a line in DuckDB for each row, by which rows are left out, held out and mixed.

It holds keys and counts, never the rows' text, and spills to disk beyond MEMORY_LIMIT, so that ten
million rows need no more memory than ten thousand. Imports the standard library; duckdb, numpy and
pyarrow when it is opened. Knows no files of rows.
"""
# ruff: noqa: S608 - only numbers and names of our own are written into the statements

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from runner.data.split import allot, draw

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
    prompts: Sequence[bytes]  # compare.match_keys
    rows: Sequence[bytes]
    exact_prompts: Sequence[bytes]  # compare.match_keys by the default rule
    exact_rows: Sequence[bytes]
    loose_prompts: Sequence[bytes]  # keys.row_keys, by which the draws and earlier runs go
    loose_rows: Sequence[bytes]
    split_draws: Any  # keys.draw_numbers of the loose prompts; None: rows are not split
    mix_draws: Any  # of the rows; None: rows are not mixed
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

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"rows": self.rows, "first_lines": self.first_lines}
        if self.others:
            record["first_repeat"] = [
                {"source": source, "line": line} for source, line in self.others
            ]
        return record


class Ledger:
    """Made in `folder`, which is the caller's to remove. One step after the other, in this order:

    add, leave_out_duplicates, leave_out_conflicts, place, (hold_out,) leaks, remove_leaks,
    write_left_out, decide.
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
            "UUID, exact_prompt UUID, exact_row UUID, loose_prompt UUID, loose_row UUID, "
            "split_draw UBIGINT, mix_draw UBIGINT, label VARCHAR, stratum VARCHAR, "
            "characters BIGINT)"
        )
        self._run(
            "CREATE TABLE left_out (why VARCHAR, source USMALLINT, line BIGINT, id BIGINT, "
            "other_source USMALLINT, other_line BIGINT)"
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

    def leave_out_duplicates(self) -> dict[int, LeftOut]:
        """Of rows of one source that are alike, keep the first; source -> what was left out."""
        self._run(
            'CREATE TABLE firsts AS SELECT source, "row", min(id) AS id, arg_min(line, id) AS line '
            'FROM entries GROUP BY source, "row"'
        )
        left_out = {}
        if self._number("SELECT (SELECT count(*) FROM entries) - (SELECT count(*) FROM firsts)"):
            left_out = self._leave_out(
                "duplicate",
                "SELECT e.id, e.source, e.line, f.source AS other_source, f.line AS other_line "
                'FROM entries e JOIN firsts f ON e.source = f.source AND e."row" = f."row" '
                "WHERE e.id <> f.id",
            )
        self._run("DROP TABLE firsts")
        return left_out

    def leave_out_conflicts(self) -> dict[int, LeftOut]:
        """Leave out all rows of a source whose prompt has more than one answer there."""
        self._run(
            'CREATE TABLE clashing AS SELECT source, prompt, arg_min("row", id) AS one, '
            "arg_min(line, id) AS line FROM entries GROUP BY source, prompt "
            'HAVING min("row") <> max("row")'
        )
        # the first row stands against all others, and the first of these against it
        self._run(
            "CREATE TABLE second AS SELECT e.source, e.prompt, arg_min(e.line, e.id) AS line "
            "FROM entries e JOIN clashing c ON e.source = c.source AND e.prompt = c.prompt "
            'WHERE e."row" <> c.one GROUP BY e.source, e.prompt'
        )
        left_out = self._leave_out(
            "conflict",
            "SELECT e.id, e.source, e.line, e.source AS other_source, "
            'CASE WHEN e."row" = c.one THEN s.line ELSE c.line END AS other_line '
            "FROM entries e JOIN clashing c ON e.source = c.source AND e.prompt = c.prompt "
            "JOIN second s ON e.source = s.source AND e.prompt = s.prompt",
        )
        self._run("DROP TABLE clashing")
        self._run("DROP TABLE second")
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
            "CREATE TABLE families AS SELECT prompt, min(split_draw) AS draw, count(*) AS "
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

    def leaks(self, side: int, other: int) -> tuple[int, list[tuple[int, int, int, int]]]:
        """Rows of `side` whose prompt is on the `other` side, and the first of them.

        Each as (source, line, source and line of the first row on the other side).
        """
        query = self._shared(side, (other,))
        number = self._number(f"SELECT count(*) FROM ({query})")
        named = (
            f"SELECT source, line, other_source, other_line FROM ({query}) ORDER BY id "
            f"LIMIT {NAMED}"
        )
        return number, self._all(named) if number else []

    def looser_leaks(self, side: int, other: int) -> int:
        """Rows of `side` that leak no more than by case and width (keys.normalised)."""
        return self._number(
            f"SELECT count(*) FROM entries WHERE side = {side} AND loose_prompt IN "
            f"(SELECT loose_prompt FROM entries WHERE side = {other}) AND prompt NOT IN "
            f"(SELECT prompt FROM entries WHERE side = {other})"
        )

    def remove_leaks(self, side: int, others: Sequence[int]) -> dict[int, LeftOut]:
        """Leave out the rows of `side` whose prompt is on one of the `others`."""
        return self._leave_out("leak", self._shared(side, others))

    def write_left_out(self, path: Path, places: Sequence[str]) -> int:
        """Write a JSON object for each row that was left out, in order; how many.

        `places` names each source. The row that it repeats, contradicts or leaks to is beside it.
        """
        import pyarrow

        number = self._number("SELECT count(*) FROM left_out")
        named = {"source": pyarrow.array(range(len(places)), pyarrow.uint16()), "place": places}
        self._run("CREATE TABLE places (source USMALLINT, place VARCHAR)")
        self._insert("places", pyarrow.table(named))
        quoted = str(path).replace("'", "''")
        self._run(
            "COPY (SELECT l.why, p.place AS file, l.line, o.place AS other_file, l.other_line "
            "FROM left_out l JOIN places p ON l.source = p.source "
            "JOIN places o ON l.other_source = o.source ORDER BY l.id, l.why) "
            f"TO '{quoted}' (FORMAT json)"
        )
        return number

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
            "SELECT id, source, side, exact_prompt, exact_row, loose_prompt, loose_row, "
            f"({times} + (more.id IS NOT NULL)::INTEGER)"
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
        """The prompt and row keys of a side's rows, each row once however often it is written.

        prompt and row are keys.row_keys, as in every run; exact_prompt and exact_row those of
        compare.match_keys by its default rule.
        """
        quoted = str(path).replace("'", "''")
        self._run(
            'COPY (SELECT loose_prompt AS prompt, loose_row AS "row", exact_prompt, exact_row '
            f"FROM entries WHERE side = {side}) TO '{quoted}' (FORMAT parquet)"
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

    def _shared(self, side: int, others: Sequence[int]) -> str:
        """The query for rows of `side` whose prompt is on one of the `others`, with that row."""
        sides = ", ".join(map(str, others))
        return (
            "SELECT e.id, e.source, e.line, o.source AS other_source, o.line AS other_line "
            "FROM entries e JOIN (SELECT prompt, arg_min(source, id) AS source, "
            f"arg_min(line, id) AS line FROM entries WHERE side IN ({sides}) GROUP BY prompt) o "
            f"ON e.prompt = o.prompt WHERE e.side = {side}"
        )

    def _leave_out(self, why: str, query: str) -> dict[int, LeftOut]:
        """Leave out the rows that `query` gives (id, source, line, other_source, other_line)."""
        self._run(f"CREATE TABLE leaving AS {query}")
        counts = self._all("SELECT source, count(*) FROM leaving GROUP BY source ORDER BY source")
        left_out = {}
        for source, number in counts:
            first = self._all(
                f"SELECT line, other_source, other_line FROM leaving WHERE source = {source} "
                f"ORDER BY id LIMIT {NAMED}"
            )
            left_out[source] = LeftOut(
                number, [line for line, *_ in first], [(there, line) for _, there, line in first]
            )
        if counts:
            self._run(
                f"INSERT INTO left_out SELECT '{why}', source, line, id, other_source, other_line "
                "FROM leaving"
            )
            self._keep("SELECT entries.* FROM entries ANTI JOIN leaving USING (id)")
        self._run("DROP TABLE leaving")
        return left_out

    def _keep(self, query: str) -> None:
        """Replace the entries by the result of `query`."""
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
