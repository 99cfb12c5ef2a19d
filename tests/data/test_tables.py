"""Tables: the dialect is told once from the whole file; no row is merged or split in silence."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runner.common.errors import Problem, SpecError
from runner.data.read import ReadOptions, read_rows, table_record
from runner.data.summary import table_lines
from runner.data.tables import TableOptions

WRITE = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
STRAY = '"Wow this was fun{d}1\nA dull film{d}0\nFine acting{d}1\nI fell asleep"{d}0\nGreat{d}1\n'


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, **table: str) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path, options=ReadOptions(TableOptions(**table)))]


def record(path: Path, **table: str) -> dict[str, Any]:
    found = table_record(path, ReadOptions(TableOptions(**table)))
    assert found is not None
    return found


def problem_of(path: Path, **table: str) -> Problem:
    with pytest.raises(SpecError) as caught:
        rows(path, **table)
    (problem,) = caught.value.problems
    return problem


def test_a_stray_quote_of_a_tsv_merges_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + STRAY.format(d="\t"))
    assert [row["label"] for row in rows(path)] == ["1", "0", "1", "0", "1"]
    assert rows(path)[0]["text"] == '"Wow this was fun'
    told = record(path)
    assert (told["lines"], told["rows"], told["quote"]) == (6, 5, "none")
    assert "would join 5 rows to 2" in told["because"]
    assert len(rows(path, quote="double")) == 2  # by hand, and then it is said
    assert record(path, quote="double")["with_tabs"] == {"rows": 1, "first_lines": [2]}


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("id\ttext\tlabel", '1\t"a\t0\n2\tb\t1\n3\tc"\t1\n'),
        ("label\ttext", '1\t"a\n0\tb\n1\tc"\n'),
        ("text\tlabel", '"never closed\t1\nb\t0\n'),
        ("text\tlabel", '"Wow" he said\t1\n5" disk\t0\n'),
    ],
)
def test_each_line_of_a_tsv_is_a_row_wherever_the_quotes_are(
    tmp_path: Path, head: str, body: str
) -> None:
    path = write(tmp_path / "a.tsv", f"{head}\n{body}")
    lines = body.splitlines()
    names = head.split("\t")
    assert rows(path) == [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


def test_a_csv_that_can_be_read_in_two_ways_is_refused_and_read_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + STRAY.format(d=","))
    problem = problem_of(path)
    assert problem.where == f"{path}:2"
    assert "2 rows where quotes stand around cells, 5 where they are plain" in problem.problem
    assert "data.table.quote" in str(problem.expected)
    assert (len(rows(path, quote="none")), len(rows(path, quote="double"))) == (5, 2)


def test_quotes_around_cells_are_marks_and_their_line_breaks_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\r\n"Hello, world\r\n\r\nfoo",1\r\n"b ""c""",0\r\n')
    assert rows(path) == [
        {"text": "Hello, world\r\n\r\nfoo", "label": "1"},
        {"text": 'b "c"', "label": "0"},
    ]
    told = record(path)
    assert (told["lines"], told["rows"], told["line_end"]) == (5, 2, "CRLF")
    assert told["with_line_breaks"] == {"rows": 1, "first_lines": [2]}
    lines = "\n".join(table_lines({"table": told}))
    assert "5 lines -> a header and 2 rows of 2 cells; comma-separated" in lines
    assert "1 rows have a cell that holds line breaks: lines 2" in lines
    tab = write(tmp_path / "b.tsv", 'text\tlabel\n"x\ty"\t1\n"l\nm"\t2\n')
    assert rows(tab)[0] == {"text": "x\ty", "label": "1"}
    assert record(tab)["with_tabs"]["first_lines"] == [2]


def test_lines_that_would_be_rows_of_a_quoted_file_are_warned_of_or_refused(tmp_path: Path) -> None:
    stray = '"Wow,1\nA dull film,0\nasleep",0\n"a, b",1\n'
    path = write(tmp_path / "a.csv", "text,label\n" + stray)
    told = record(path)
    assert told["joined_lines"] == {"rows": 1, "first_lines": [2]}
    assert any(line.startswith("WARNING: ") for line in table_lines({"table": told}))
    tab = write(
        tmp_path / "a.tsv", "text\tlabel\n" + stray.replace(",", "\t").replace("\t b", "\tb")
    )
    assert "two ways" in problem_of(tab).problem


@pytest.mark.parametrize(
    ("name", "content", "delimiter", "escape"),
    [
        ("a.csv", "text;label\nHello, you;1\n", "semicolon", None),
        ("a.csv", "sep=;\ntext;label\nHello, you;1\n", "semicolon", None),
        ("a.csv", "text\tlabel\nHello, you\t1\n", "tab", None),
        ("a.tsv", 'text,label\n"Hello, you",1\n', "comma", "doubled"),
        ("a.csv", "text|label\nHello, you|1\n", "pipe", None),
        ("a.csv", 'text,label\n"Hello, \\"you\\"",1\n', "comma", "backslash"),
    ],
)
def test_delimiter_and_escape_are_told_from_every_row(
    tmp_path: Path, name: str, content: str, delimiter: str, escape: str | None
) -> None:
    path = write(tmp_path / name, content)
    (row,) = rows(path)
    assert row["text"].replace('"', "") == "Hello, you"
    assert row["label"] == "1"
    told = record(path)
    assert (told["delimiter"], told["escape"]) == (delimiter, escape)


def test_a_first_line_that_names_the_delimiter_is_said_and_is_no_blank_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sep=;\ntext;label\n\nHello, you;1\n")
    told = record(path)
    assert (told["lines"], told["blank_lines"], told["rows"]) == (4, 1, 1)
    assert told["delimiter_line"] is True
    assert table_lines({"table": told})[0].startswith(
        "4 lines, 1 of them blank, the first of them sep=, which names the delimiter -> a header "
        "and 1 rows of 2 cells; semicolon-separated"
    )
    plain = record(write(tmp_path / "b.csv", "text;label\nsep=;\n"))
    assert plain["delimiter_line"] is False and plain["blank_lines"] == 0
    del plain["delimiter_line"]  # a report of before
    assert table_lines({"table": plain})[0].startswith("2 lines -> a header and 1 rows")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    path = write(tmp_path / "a.csv", f"text,label{end}你好,1{end}".encode(encoding))
    assert rows(path) == [{"text": "你好", "label": "1"}]
    told = record(path)
    assert told["encoding"] == encoding.removesuffix("-sig")
    assert told["line_end"] == {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}[end]
    assert told["byte_order_mark"] == (encoding != "utf-8")


def test_another_encoding_is_named_and_taken_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n好,1\n".encode("gb18030"))
    problem = problem_of(path)
    assert problem.where == f"{path}:2"
    assert "data.table.encoding" in str(problem.expected)
    assert rows(path, encoding="gb18030") == [{"text": "好", "label": "1"}]
    wide = write(tmp_path / "b.csv", "text,label\na,1\n".encode("utf-16-le"))
    assert "utf-16-le" in str(problem_of(wide).expected)
    assert rows(wide, encoding="utf-16-le") == [{"text": "a", "label": "1"}]
    broken = write(tmp_path / "c.csv", b"text,label\na,1\n\xff\xff,2\n")
    assert problem_of(broken, encoding="shift_jis").where == f"{broken}:3"


def test_a_lone_carriage_return_splits_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na\rb,1\nc,2\n")
    assert [row["text"] for row in rows(path)] == ["a\rb", "c"]
    assert record(path)["with_line_breaks"] == {"rows": 1, "first_lines": [2]}


def test_ragged_rows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1\nb, c,1\n")
    problem = problem_of(path)
    assert problem.where == f"{path}:3"
    assert problem.problem == "the row at line 3 has 3 cells, the header 2"
    path = write(tmp_path / "b.csv", 'text,label\n"a",1\n"b" c,1\n"d",1\n')
    assert problem_of(path).where == f"{path}:3"  # the quotes around all others stay marks


def test_a_column_twice_is_refused_and_one_without_a_name_is_none_of_ours(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\ttext\na\t1\tb\n")
    problem = problem_of(path)
    assert (problem.where, "'text' more than once" in problem.problem) == (f"{path}:1", True)
    index = write(tmp_path / "b.csv", ",text,label\n0,a,1\n")
    assert rows(index) == [{"column 1": "0", "text": "a", "label": "1"}]


CELL = st.text(st.sampled_from(list("ab\"', ;|\\\t\n\r你")), max_size=8)
PLAIN = st.text(st.sampled_from(list("ab\"', ;|\\你")), min_size=1, max_size=8)


@WRITE
@given(table=st.lists(st.tuples(CELL, st.sampled_from("01")), min_size=1, max_size=6))
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_what_a_csv_writer_wrote_comes_back_or_its_doubt_is_said(
    tmp_path: Path, kind: str, table: list[tuple[str, str]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if kind == "csv" else "\t")
    writer.writerows([("text", "label"), *table])
    path = write(tmp_path / f"a.{kind}", text.getvalue())
    try:
        found = [(row["text"], row["label"]) for row in rows(path)]
    except SpecError:
        return  # refused, with file and line
    if found != table:
        assert record(path)["quote"] == "none"
        assert "would join" in record(path)["because"]


@WRITE
@given(table=st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=6))
@example(table=[(";", '"', ";"), (";", '"', '""')])
def test_no_line_of_a_plain_tsv_is_merged(
    tmp_path: Path, table: list[tuple[str, str, str]]
) -> None:
    head = ("one", "two", "three")
    lines = ["\t".join(cells) for cells in [head, *table]]
    path = write(tmp_path / "a.tsv", "\n".join(lines) + "\n")
    try:
        found = list(read_rows(path))
    except SpecError as error:
        # doubled quotes speak for marks, the count of cells against them: asked, not guessed
        assert '""' in "".join(lines)
        assert "can be read in two ways" in error.problems[0].problem
        return
    assert [number for number, _ in found] == list(range(2, len(table) + 2))
    if record(path)["quote"] == "none":
        assert [tuple(row.values()) for _, row in found] == table
