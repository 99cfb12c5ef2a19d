"""The confusion matrix as a picture: labels that can be drawn, or numbers; never boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.engines.sft.inside.evaluate import picture

MATRIX = [[7, 1, 2], [3, 6, 0], [0, 0, 0]]


def record(labels: list[str], matrix: list[list[int]] = MATRIX) -> dict[str, Any]:
    return {"labels": [*labels, "(unparseable)"], "model": matrix, "base": matrix}


def draw(tmp_path: Path, labels: list[str], matrix: Any = MATRIX) -> list[str] | None:
    names = {"model": "trained", "base": "base"}
    return picture.draw(record(labels, matrix), tmp_path / "c.png", "job: 19 rows", names)


def test_labels_are_drawn_as_they_are_where_a_font_has_them(tmp_path: Path) -> None:
    assert draw(tmp_path, ["bad", "good"]) == ["bad", "good", "(unparseable)"]
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > image.height > 300  # two matrices side by side
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_labels_without_a_font_are_numbered_and_the_legend_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["\u8d1f\u9762", "\u6b63\u9762"]
    monkeypatch.setattr(picture, "font_with", lambda text: None if not text.isascii() else "x")
    shown = draw(tmp_path, labels)
    assert shown == ["1", "2", "(unparseable)"]
    assert picture.legend([*labels, "(unparseable)"], shown) == {"1": labels[0], "2": labels[1]}


def test_no_font_of_boxes_is_taken() -> None:
    assert picture.font_with("bad") == "DejaVu Sans"
    assert picture.font_with("\U0010fffd") is None  # private use: only a font of boxes has it


def test_where_every_answer_is_a_label_no_column_is_empty(tmp_path: Path) -> None:
    assert draw(tmp_path, ["bad", "good"], [[7, 3, 0], [3, 6, 0], [0, 0, 0]]) == ["bad", "good"]


def test_long_labels_are_cut_and_too_many_are_left_to_the_json(tmp_path: Path) -> None:
    shown = draw(tmp_path, ["x" * 80, "good"])
    assert shown is not None and len(shown[0]) == 24
    many = [str(number) for number in range(picture.MOST_CLASSES + 1)]
    size = len(many) + 1
    empty = [[0] * size for _ in range(size)]
    names = {"model": "m", "base": "b"}
    assert picture.draw(record(many, empty), tmp_path / "m.png", "t", names) is None
    assert not (tmp_path / "m.png").exists()
