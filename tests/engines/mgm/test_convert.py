"""Capping and converting rows: upstream's rules, on any rows and on the 200 real ones."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines.mgm.stages import cap, convert
from tests.engines.mgm.cases import run_stage, write_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def question(row: dict[str, Any], text: str = "What?") -> dict[str, Any]:
    return {
        "id": row["id"],
        "conversations": [
            {"from": "human", "value": f"<image>\n{text}"},
            {"from": "gpt", "value": "lost"},
        ],
    }


def test_the_200_real_rows_become_what_upstream_made_of_them(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/mgm_200"
    out = tmp_path / "rows.json"
    done = run_stage(
        "convert",
        *("--input", source / "data.jsonl", "--output", out),
        *("--questions", source / "data.llava.json"),
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads((source / "data.llava.json").read_text())
    assert json.loads(out.read_text()) == expected
    # not a byte otherwise than json.dump writes, as upstream does
    assert out.read_text() == json.dumps(
        [{key: row[key] for key in ("id", "conversations", "image")} for row in expected]
    )


@given(TEXT)
def test_a_caption_survives_whatever_marks_are_put_around_it(caption: str) -> None:
    caption = caption.strip()
    if caption.startswith(convert.DJ_IMAGE) or caption.endswith((convert.DJ_IMAGE, convert.DJ_END)):
        return
    for text in (
        f"{convert.DJ_IMAGE}\n{caption} {convert.DJ_END}",
        f"{caption}\n{convert.DJ_IMAGE} {convert.DJ_END}\n",
        f"  {caption}\n",
    ):
        assert convert.answer_of(text) == caption


@given(
    st.lists(st.dictionaries(TEXT, JSON, max_size=4), max_size=6),
    st.sampled_from(["", " ", "\n\t"]),
    st.integers(1, 40),
)
@settings(max_examples=60)
def test_an_array_is_read_the_same_in_pieces_of_any_size(
    elements: list[Any], space: str, chunk: int
) -> None:
    text = f"{space}[{space}" + f"{space},{space}".join(map(json.dumps, elements)) + f"{space}]"

    class Pieces(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            return super().read(chunk)

    assert list(convert.read_array(Pieces(text), "x")) == elements


@pytest.mark.parametrize("text", ["", "{}", "[", "[{}", "[{} {}]", "[{},]", "[1]", '[{"a', "[{]"])
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(convert.RowError, match=r"rows\.json"):
        list(convert.read_array(io.StringIO(text), "rows.json"))


@given(
    st.lists(
        st.builds(
            lambda number, caption, image: {
                "id": number,
                "text": f"{convert.DJ_IMAGE}\n{caption} {convert.DJ_END}",
                "images": [f"{image}.jpg"] * 2,
            },
            st.integers(0, 50) | st.integers(0, 50).map(str),
            TEXT,
            st.integers(0, 9),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_rows_keep_their_number_order_images_and_get_their_question(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    source = write_rows(folder / "in.jsonl", rows)
    asked = [question({"id": str(row["id"])}, f"What of {row['id']}?") for row in rows]
    questions = write_rows(folder / "stage_1.json", [*asked, question({"id": "other"})])
    assert convert.convert(source, folder / "out.json", questions, "") == len(rows)
    converted = json.loads((folder / "out.json").read_text())
    for row, got in zip(rows, converted, strict=True):
        assert got["id"] == str(row["id"])  # the form of the questions' file
        assert got["image"] == row["images"][0]
        assert got["conversations"][0]["value"] == f"<image>\nWhat of {row['id']}?"
        assert got["conversations"][1]["from"] == "gpt"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "9", "text": "x", "images": ["a.jpg"]}, "id '9' is not in"),
        ({"id": "1", "text": "x", "images": ["a.jpg", "b.jpg"]}, "2 different images"),
        ({"id": "1", "images": []}, "no text"),
        ({"text": "x"}, "not a row with an id"),
        ([], "not a row with an id"),
    ],
)
def test_a_row_that_does_not_fit_ends_the_conversion_and_leaves_nothing(
    tmp_path: Path, row: Any, told: str
) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"id": "1", "text": "good", "images": []}, row])
    questions = write_rows(tmp_path / "stage_1.json", [question({"id": "1"})])
    out = tmp_path / "out.json"
    done = run_stage("convert", "--input", source, "--output", out, "--questions", questions)
    assert done.returncode == 1
    assert told in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "stage_1.json"]


def test_without_a_questions_file_the_default_is_asked_and_said(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "a cat", "images": ["a.jpg"]}, {"id": 2, "text": "no picture"}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.json"
    done = run_stage("convert", "--input", source, "--output", out, "--default-question=What?")
    assert "every row asks 'What?'" in done.stdout
    first, second = json.loads(out.read_text())
    assert first["conversations"][0] == {"from": "human", "value": "<image>\nWhat?"}
    assert second["conversations"][0]["value"] == "What?"
    assert "image" not in second


def test_a_sample_is_the_one_that_upstream_draws(tmp_path: Path) -> None:
    rows = [{"id": number, "text": "x" * (number % 7)} for number in range(500)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    done = run_stage("cap", "--input", source, "--output", out, "--max-samples", 120)
    assert "120 of 500 rows" in done.stdout
    random.seed(1024)  # as check_sample_number.py of the toolkit does
    assert [json.loads(line) for line in out.read_text().splitlines()] == random.sample(rows, 120)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_a_cap_keeps_rows_whole_and_each_at_most_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int
) -> None:
    folder = tmp_path_factory.mktemp("cap")
    lines = [json.dumps({"id": number, "t": "é" * size}) for number, size in enumerate(sizes)]
    (folder / "in").write_text("\n\n".join(lines), encoding="utf-8")  # blank lines, no last newline
    read, kept = cap.cap(folder / "in", folder / "out", most)
    got = (folder / "out").read_text(encoding="utf-8").splitlines()
    assert (read, kept) == (len(sizes), min(most, len(sizes)))
    assert len(set(got)) == len(got) == kept
    assert set(got) <= set(lines)
    if most >= len(sizes):
        assert got == lines


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n")
    for name, last in (("cap", ("--max-samples", 1)), ("convert", ("--default-question", "?"))):
        done = run_stage(name, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "o", *last)
        assert done.returncode == 1
        assert "has no rows" in done.stderr
