from __future__ import annotations

import itertools
import json
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import Problem, RefusedError, SpecError
from runner.data import json_rows
from runner.data.hub import read_hub
from runner.data.read import read_rows, shorten

ROWS = [{"text": '你好, "quoted"\nnext line', "label": "a"}, {"text": "b 🤖", "label": "c"}]


def problem_of(path: Path) -> Problem:
    with pytest.raises(SpecError) as caught:
        list(read_rows(path, "data.train"))
    assert len(caught.value.problems) == 1
    problem = caught.value.problems[0]
    assert problem.field == "data.train"
    return problem


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def in_format(kind: str) -> bytes:
    if kind == "json":
        return json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
    if kind in ("jsonl", "ndjson"):
        return "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS).encode() + b"\n"
    d = "," if kind == "csv" else "\t"
    cell = ROWS[0]["text"].replace('"', '""')
    return f'text{d}label\r\n"{cell}"{d}a\r\nb 🤖{d}c\r\n'.encode()


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "ndjson", "csv", "tsv"])
def test_every_text_kind_gives_the_same_rows(tmp_path: Path, kind: str, bom: bytes) -> None:
    path = write(tmp_path / f"rows.{kind}", bom + in_format(kind))
    assert [row for _, row in read_rows(path)] == ROWS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert list(read_rows(path)) == list(enumerate(ROWS, start=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([], schema=None), path)
    assert problem_of(path).problem == "the file is empty"
    write(path, b"PAR1 but not really")
    assert "not readable as parquet" in problem_of(path).problem


def test_numbers_are_lines_or_rows(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [n for n, _ in read_rows(lines)] == [1, 3]
    table = write(tmp_path / "a.csv", 'a,b\n"two\nlines",x\n\n3,4\n')
    assert [n for n, _ in read_rows(table)] == [2, 5]
    array = write(tmp_path / "a.json", '[\n\n{"a": 1},\n{"a": 2}]')
    assert [n for n, _ in read_rows(array)] == [1, 2]


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_is_read_through_a_small_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, ascii_only: bool
) -> None:
    rows = [{"a": n, "b": ["🤖 x", None, True, -1.5e-7], "c": {}} for n in range(20)] + ROWS
    path = write(tmp_path / "a.json", " \r\n" + json.dumps(rows, ensure_ascii=ascii_only, indent=2))
    monkeypatch.setattr(json_rows, "_BUFFER_CHARACTERS", size)
    assert [row for _, row in read_rows(path)] == rows


@pytest.mark.parametrize("size", [1, 16, 1 << 20])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[\n {"a": 1},\n {"a" 2}\n]', "line 3 is not JSON: Expecting ':' delimiter at column 7"),
        ('[\n{"a": 1}\n{"a": 2}]', "line 3 is not JSON: Expecting ',' delimiter at column 1"),
        ('[{"a": 1},]', "line 1 is not JSON: Expecting value at column 11"),
        ('[{"a": 1}\n] \n x', "line 3 is not JSON: Extra data at column 2"),
        (
            '[{"a": 1},\n{"a": "b]\n',
            "line 2 is not JSON: Invalid control character at at column 10",
        ),
        ('[{"a": 1}, {"a": "b', "line 1 is not JSON: Unterminated string starting at at column 18"),
    ],
)
def test_a_broken_array_is_named_to_the_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, content: str, words: str
) -> None:
    monkeypatch.setattr(json_rows, "_BUFFER_CHARACTERS", size)
    path = write(tmp_path / "a.json", content)
    problem = problem_of(path)
    assert problem.problem == words
    assert problem.where == f"{path}:{words.split()[1]}"
    assert str(problem.value) in content
    with pytest.raises(json.JSONDecodeError) as whole:  # as when the file is parsed at once
        json.loads(content)
    assert words == f"line {whole.value.lineno} is not JSON: {whole.value.msg} at column " + str(
        whole.value.colno
    )


def test_rows_of_an_array_come_before_it_ends(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.json", '[{"a": 1}, {"a": 2}, oops'))
    assert next(rows) == (1, {"a": 1})
    assert next(rows) == (2, {"a": 2})
    with pytest.raises(SpecError):
        next(rows)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_large_files_are_read_in_little_memory(tmp_path: Path, kind: str) -> None:
    path, text = tmp_path / f"a.{kind}", "x" * 1000
    count = 30_000  # 30 MB
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow = pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.table({"a": [f"{n}{text}" for n in range(count)]}), path)
    else:
        opening, line, between, closing = {
            "json": ("[", '{{"a": "{}{}"}}', ",\n", "]"),
            "jsonl": ("", '{{"a": "{}{}"}}', "\n", ""),
            "csv": ("a\n", "{}{}", "\n", ""),
        }[kind]
        with path.open("w") as stream:
            stream.write(
                opening + between.join(line.format(n, text) for n in range(count)) + closing
            )
    rows = read_rows(path)
    next(rows)
    tracemalloc.start()
    assert sum(1 for _ in rows) == count - 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": oops}\n')
    problem = problem_of(path)
    assert problem.where == f"{path}:2"
    assert problem.problem.startswith("line 2 is not JSON: ")
    assert problem.value == '{"a": oops}'
    assert problem.expected == "one JSON object on each line"


def test_rows_before_the_broken_line_are_given(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.jsonl", '{"a": 1}\n!\n'))
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(SpecError):
        next(rows)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *itertools.product(["json", "jsonl", "csv", "tsv"], ["", "\n", "\ufeff"]),
        ("parquet", ""),
    ],
)
def test_an_empty_file_is_refused(tmp_path: Path, kind: str, content: str) -> None:
    assert problem_of(write(tmp_path / f"a.{kind}", content)).problem == "the file is empty"


def test_a_header_alone_or_an_empty_array_is_empty(tmp_path: Path) -> None:
    assert problem_of(write(tmp_path / "a.csv", "a,b\n")).problem == "the file is empty"
    assert problem_of(write(tmp_path / "a.json", "[]")).problem == "the file is empty"


def test_an_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    problem = problem_of(write(tmp_path / "a.jsnl", "{}"))
    assert (problem.value, problem.nearest) == (".jsnl", ".jsonl")
    assert ".parquet" in str(problem.expected)


def test_a_missing_file_names_the_nearest_there(tmp_path: Path) -> None:
    write(tmp_path / "commonsense_17k.json", "[]")
    problem = problem_of(tmp_path / "comonsense_17k.json")
    assert problem.problem == "no such file"
    assert problem.nearest == str(tmp_path / "commonsense_17k.json")
    (tmp_path / "data").mkdir()
    problem = problem_of(tmp_path / "dta" / "a.json")
    assert problem.problem == f"no such folder: {tmp_path / 'dta'}"
    assert problem.nearest == str(tmp_path / "data")
    (tmp_path / "folder.json").mkdir()
    assert problem_of(tmp_path / "folder.json").problem == "is a folder"


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8_are_named_by_offset(tmp_path: Path, kind: str, bom: bytes) -> None:
    raw = bom + b'{"a": "x"}\n{"a": "\xff"}\n'
    problem = problem_of(write(tmp_path / f"a.{kind}", raw))
    assert problem.problem == f"not UTF-8: byte 0xff at byte offset {raw.index(0xFF)}"
    assert problem.where.endswith(":2")


def test_utf16_is_recognised(tmp_path: Path) -> None:
    problem = problem_of(write(tmp_path / "a.json", '[{"a": 1}]'.encode("utf-16")))
    assert "UTF-16" in str(problem.expected)


@pytest.mark.parametrize(
    ("content", "where", "words"),
    [
        ('{"data": [{"a": 1}]}', 1, "holds an object"),
        ('"text"', 1, "holds a string"),
        ('[{"a": 1}, 3]', 2, "row 2 is a number"),
        ('[{"a": 1},\n null]', 2, "row 2 is null"),
        ('[{"a": 1},\n', 2, "line 2 is not JSON"),
    ],
)
def test_json_must_be_an_array_of_objects(
    tmp_path: Path, content: str, where: int, words: str
) -> None:
    path = write(tmp_path / "a.json", content)
    problem = problem_of(path)
    assert problem.where == f"{path}:{where}"
    assert words in problem.problem
    assert "array of objects" in str(problem.expected)


def test_json_hints_at_what_was_meant(tmp_path: Path) -> None:
    assert "'data'" in str(problem_of(write(tmp_path / "a.json", '{"data": []}')).nearest)
    lines = write(tmp_path / "b.json", '{"a": 1}\n{"a": 2}\n')
    assert "b.jsonl" in str(problem_of(lines).nearest)
    array = write(tmp_path / "c.jsonl", "[\n{}\n]")
    assert problem_of(array).nearest == "a .json file"


def test_jsonl_lines_must_be_objects(tmp_path: Path) -> None:
    problem = problem_of(write(tmp_path / "a.jsonl", '{"a": 1}\n[1, 2]\n'))
    assert problem.problem == "line 2 is an array, not a JSON object"
    deep = write(tmp_path / "b.jsonl", "[" * 200_000 + "\n")
    assert "line 1" in problem_of(deep).problem


def test_a_table_row_of_the_wrong_width_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"a\nb",1\nc,2,3\n')
    problem = problem_of(path)
    assert problem.where == f"{path}:4"
    assert problem.problem == "the row at line 4 has 3 cells, the header 2"
    assert str(problem.expected).startswith("2 cells: text, label (comma-separated, ")
    assert "header" in problem_of(write(tmp_path / "b.csv", "a,a\n1,2\n")).problem
    broken = problem_of(write(tmp_path / "c.csv", 'a,b\n"z",1\n"x"y,2\n'))
    assert (broken.where, "broken" in broken.problem) == (f"{tmp_path / 'c.csv'}:3", True)


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n" + "x" * 300_000 + ",1\n")
    assert len(next(read_rows(path))[1]["a"]) == 300_000


def test_a_file_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.jsonl", "{}\n")
    monkeypatch.setattr(Path, "open", refuse)
    assert problem_of(path).problem == "can't be read: Permission denied"


def test_values_are_shown_short() -> None:
    assert len(shorten("x" * 1000)) == 80
    assert shorten("a\nb\ud83d") == "a\\nb\\ud83d"
    assert shorten({"a": "你"}) == '{"a": "你"}'


class TransportError(Exception):
    """Named as httpx's base class is: such errors are told by their names."""


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), ["HF_ENDPOINT", "HF_HUB_OFFLINE"]),
        (TransportError("name resolution"), ["HF_ENDPOINT", "HF_DATASETS_OFFLINE"]),
        (FileNotFoundError("doesn't exist"), ["no data set a/b@main", "HF_TOKEN"]),
        (ValueError("Unknown split"), ["split 'train'"]),
    ],
)
def test_hub_failures_say_what_to_set(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, words: list[str]
) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise raised

    stand_in = types.ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    with pytest.raises(RefusedError) as caught:
        list(read_hub("a/b", "main", None, "train"))
    printed = "\n".join(caught.value.lines())
    assert all(word in printed for word in words)


def test_hub_rows_are_numbered_and_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(dataset_id: str, **options: Any) -> Any:
        asked.update(options, id=dataset_id)
        if dataset_id == "bug":
            raise KeyError("a bug")
        return ROWS

    stand_in = types.ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    assert list(read_hub("a/b", "060db64", "small", "train")) == list(enumerate(ROWS, start=1))
    assert asked == {
        "id": "a/b",
        "name": "small",
        "split": "train",
        "revision": "060db64",
        "streaming": False,
    }
    with pytest.raises(KeyError):
        list(read_hub("bug", None, None, "train"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RefusedError, match="datasets"):
        list(read_hub("a/b", None, None, "train"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("commonsense_17k.json", 17_752),
        ("chnsenticorp_dev.jsonl", 805),
        ("lora_identity.jsonl", 91),
        ("mgm_200/data.jsonl", 200),
    ],
)
def test_real_files_are_read_whole(shared: Path, name: str, count: int) -> None:
    assert sum(1 for _ in read_rows(shared / "data" / name)) == count
