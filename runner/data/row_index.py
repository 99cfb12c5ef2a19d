"""Which rows are left out, held out and mixed, decided in DuckDB by keys and counts alone.

Imports the standard library and this package's `row_table` and `split`. Knows no files of rows.
"""
# ruff: noqa: S608 - only numbers and names of our own are written into the statements

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runner.data.row_table import NAMED, LeftOut, RowTable
from runner.data.split import allot, draw

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_BATCH = 50_000

TRAIN, EVAL, TEST = 0, 1, 2


class RowIndex(RowTable):
    """One step after the other, in this order:

    add, leave_out_duplicates, leave_out_conflicts, place, (hold_out,) leaks, remove_leaks,
    write_left_out, decide.
    """

    def leave_out_duplicates(self) -> dict[int, LeftOut]:
        """Of rows of one source that are alike, keep the first; source -> what was left out."""
        self.run(
            'CREATE TABLE firsts AS SELECT source, "row", min(id) AS id, arg_min(line, id) AS line '
            'FROM entries GROUP BY source, "row"'
        )
        left_out = {}
        if self.read_number(
            "SELECT (SELECT count(*) FROM entries) - (SELECT count(*) FROM firsts)"
        ):
            left_out = self.leave_out(
                "duplicate",
                "SELECT e.id, e.source, e.line, f.source AS other_source, f.line AS other_line "
                'FROM entries e JOIN firsts f ON e.source = f.source AND e."row" = f."row" '
                "WHERE e.id <> f.id",
            )
        self.run("DROP TABLE firsts")
        return left_out

    def leave_out_conflicts(self) -> dict[int, LeftOut]:
        """Leave out all rows of a source whose prompt has more than one answer there."""
        self.run(
            'CREATE TABLE clashing AS SELECT source, prompt, arg_min("row", id) AS one, '
            "arg_min(line, id) AS line FROM entries GROUP BY source, prompt "
            'HAVING min("row") <> max("row")'
        )
        # the first row stands against all others, and the first of these against it
        self.run(
            "CREATE TABLE second AS SELECT e.source, e.prompt, arg_min(e.line, e.id) AS line "
            "FROM entries e JOIN clashing c ON e.source = c.source AND e.prompt = c.prompt "
            'WHERE e."row" <> c.one GROUP BY e.source, e.prompt'
        )
        left_out = self.leave_out(
            "conflict",
            "SELECT e.id, e.source, e.line, e.source AS other_source, "
            'CASE WHEN e."row" = c.one THEN s.line ELSE c.line END AS other_line '
            "FROM entries e JOIN clashing c ON e.source = c.source AND e.prompt = c.prompt "
            "JOIN second s ON e.source = s.source AND e.prompt = s.prompt",
        )
        self.run("DROP TABLE clashing")
        self.run("DROP TABLE second")
        return left_out

    def strata(self) -> int:
        """How many different values the stratify key has among the rows of source 0."""
        return self.read_number("SELECT count(DISTINCT stratum) FROM entries WHERE source = 0")

    def hold_out(self, eval_share: float, test_share: float) -> None:
        """Draw rows of source 0 for eval and test, by `split_draw`; equal prompts stay together.

        Where a split's share finds no group of rows small enough, it gets the smallest group that
        leaves something to train on.
        """
        self.run("CREATE TABLE held (prompt UUID, split UTINYINT)")
        self.run(
            "CREATE TABLE families AS SELECT prompt, min(split_draw) AS draw, count(*) AS "
            "size, coalesce(min(stratum), '') AS stratum FROM entries WHERE source = 0 "
            "GROUP BY prompt"
        )
        sizes = dict(
            self.read_all("SELECT stratum, sum(size)::BIGINT FROM families GROUP BY stratum")
        )
        for stratum, rooms in allot(sizes, eval_share, test_share).items():
            self._hold(draw(self._families(stratum), rooms))
        for split, share in ((EVAL, eval_share), (TEST, test_share)):
            free = "FROM families WHERE prompt NOT IN (SELECT prompt FROM held)"
            held = self.read_number(f"SELECT count(*) FROM held WHERE split = {split}")
            if share and not held and self.read_number(f"SELECT count(*) {free}") > 1:
                self.run(
                    f"INSERT INTO held SELECT prompt, {split} {free} ORDER BY size, draw, prompt "
                    "LIMIT 1"
                )
        self.run("DROP TABLE families")

    def place(self, splits: Sequence[int]) -> None:
        """Put each row on a split: that of its source, or what `hold_out` drew for source 0."""
        self.run("CREATE TABLE IF NOT EXISTS held (prompt UUID, split UTINYINT)")
        fixed = " ".join(f"WHEN {source} THEN {split}" for source, split in enumerate(splits))
        self.keep(
            "SELECT entries.*, coalesce(held.split, "
            f"CASE entries.source {fixed} END)::UTINYINT AS split "
            "FROM entries LEFT JOIN held ON entries.source = 0 AND entries.prompt = held.prompt"
        )
        self.run("DROP TABLE held")

    def leaks(self, split: int, other: int) -> tuple[int, list[tuple[int, int, int, int]]]:
        """Rows of `split` whose prompt is on the `other` split, and the first of them.

        Each as (source, line, source and line of the first row on the other split).
        """
        query = self._shared(split, (other,))
        number = self.read_number(f"SELECT count(*) FROM ({query})")
        named = (
            f"SELECT source, line, other_source, other_line FROM ({query}) ORDER BY id "
            f"LIMIT {NAMED}"
        )
        return number, self.read_all(named) if number else []

    def looser_leaks(self, split: int, other: int) -> int:
        """Rows of `split` that leak no more than by case and width (keys.normalised)."""
        return self.read_number(
            f"SELECT count(*) FROM entries WHERE split = {split} AND loose_prompt IN "
            f"(SELECT loose_prompt FROM entries WHERE split = {other}) AND prompt NOT IN "
            f"(SELECT prompt FROM entries WHERE split = {other})"
        )

    def remove_leaks(self, split: int, others: Sequence[int]) -> dict[int, LeftOut]:
        """Leave out the rows of `split` whose prompt is on one of the `others`."""
        return self.leave_out("leak", self._shared(split, others))

    def counts(self) -> dict[tuple[int, int], int]:
        """(source, split) -> rows, each counted once."""
        rows = self.read_all("SELECT source, split, count(*) FROM entries GROUP BY source, split")
        return {(source, split): number for source, split, number in rows}

    def values(
        self, column: Literal["stratum", "label"], most: int
    ) -> dict[str, dict[int, int]] | None:
        """Value -> split -> rows, before any mix; None where there are none, or over `most`.

        Strata are those of source 0; a row without the key has none.
        """
        of = f"FROM entries WHERE {column} IS NOT NULL" + (
            " AND source = 0" if column == "stratum" else ""
        )
        if not 0 < self.read_number(f"SELECT count(DISTINCT {column}) {of}") <= most:
            return None
        found: dict[str, dict[int, int]] = {}
        for value, split, number in self.read_all(
            f"SELECT {column}, split, count(*) {of} GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault(value, {})[split] = number
        return found

    def lengths(self) -> dict[int, list[tuple[int, int]]]:
        """Side -> (bits, rows): rows of 2**(bits-1)+1 to 2**bits characters, before any mix."""
        found: dict[int, list[tuple[int, int]]] = {}
        for split, bits, number in self.read_all(
            "SELECT split, ceil(log2(greatest(characters, 1)))::INTEGER AS bits, count(*) "
            "FROM entries GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault(split, []).append((bits, number))
        return found

    def decide(self, drawn: dict[int, tuple[int, int]]) -> None:
        """How often each row is written: once, but for training rows of the sources in `drawn`.

        `drawn`: source -> (times, more): each row `times`, and `more` of them, drawn by `mix_draw`,
        once more.
        """
        self.run("CREATE TABLE more (id BIGINT)")
        for source, (_, more) in drawn.items():
            if more:
                self.run(
                    f"INSERT INTO more SELECT id FROM entries WHERE split = {TRAIN} AND "
                    f"source = {source} ORDER BY mix_draw, id LIMIT {more}"
                )
        fixed = " ".join(f"WHEN {source} THEN {times}" for source, (times, _) in drawn.items())
        times = (
            f"CASE WHEN split = {TRAIN} THEN CASE source {fixed} ELSE 1 END ELSE 1 END"
            if drawn
            else "1"
        )
        self.keep(
            "SELECT id, source, split, exact_prompt, exact_row, loose_prompt, loose_row, "
            f"({times} + (more.id IS NOT NULL)::INTEGER)"
            "::INTEGER AS times FROM entries LEFT JOIN more USING (id) ORDER BY id"
        )
        self.run("DELETE FROM entries WHERE times = 0")

    def decided(
        self, first: int, stop: int
    ) -> tuple[NDArray[numpy.int64], NDArray[numpy.uint8], NDArray[numpy.int32]]:
        """numpy arrays (id, split, times) of the rows from `first` to before `stop`, by id."""
        found = self.run(
            f"SELECT id, split, times FROM entries WHERE id >= {first} AND id < {stop} ORDER BY id"
        ).fetchnumpy()
        return found["id"], found["split"], found["times"]

    def write_hashes(self, split: int, path: Path) -> None:
        """The prompt and row keys of a split's rows, each row once however often it is written.

        prompt and row are keys.row_keys, as in every run; exact_prompt and exact_row those of
        compare.match_keys by its default rule.
        """
        quoted = str(path).replace("'", "''")
        self.run(
            'COPY (SELECT loose_prompt AS prompt, loose_row AS "row", exact_prompt, exact_row '
            f"FROM entries WHERE split = {split}) TO '{quoted}' (FORMAT parquet)"
        )

    def _families(self, stratum: str) -> Iterator[tuple[str, int]]:
        """(prompt as text, rows) of a stratum in drawn order."""
        # a cursor of its own, since other statements run while it is read
        with self.database.cursor() as cursor:
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
        splits: list[int] = []

        def flush() -> None:
            assigned = {"prompt": prompts, "split": pyarrow.array(splits, pyarrow.uint8())}
            self.insert("held", pyarrow.table(assigned))
            prompts.clear()
            splits.clear()

        for prompt, split in chosen:
            prompts.append(prompt)
            splits.append(split)
            if len(prompts) == _BATCH:
                flush()
        if prompts:
            flush()

    def _shared(self, split: int, others: Sequence[int]) -> str:
        """The query for rows of `split` whose prompt is on one of the `others`, with that row."""
        splits = ", ".join(map(str, others))
        return (
            "SELECT e.id, e.source, e.line, o.source AS other_source, o.line AS other_line "
            "FROM entries e JOIN (SELECT prompt, arg_min(source, id) AS source, "
            f"arg_min(line, id) AS line FROM entries WHERE split IN ({splits}) GROUP BY prompt) o "
            f"ON e.prompt = o.prompt WHERE e.split = {split}"
        )
