"""What preflight knows of rows, pictures and steps, function by function."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from runner.engines.mgm.command import stage_flags
from runner.engines.mgm.stages import convert, pictures, rows, steps
from tests.engines.mgm.cases import finetune_row, planned, pretrain_row, settings, write_rows

# rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"review": "a", "id": "1"}, "no text (its keys: review, id)"),
        ({"text": "a"}, "no id"),
        ({"id": "1", "text": 5}, "text is 5"),
        ({"id": "1", "text": "a", "images": "x.png"}, 'images is "x.png"'),
        ({"id": "1", "text": "a", "images": ["x", "y"]}, "2 different images"),
        ([1], "[1]"),
    ],
)
def test_a_caption_that_could_not_be_converted_is_named_by_its_line(
    row: Any, told: str, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [pretrain_row(1), row, row])
    looked = rows.look_at_rows("pretrain", path, {})
    (finding,) = looked.findings  # one kind, once
    assert f"{path}, line 2: {told}" in str(finding)
    assert finding.field == "pretrain.data_path"


def turns(*sides: str) -> dict[str, Any]:
    return {"id": "1", "conversations": [{"from": side, "value": "x"} for side in sides]}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "1", "messages": []}, "no conversations (its keys: id, messages)"),
        (turns(), "no conversations"),
        (turns("human", "human", "gpt"), "from the same side"),
        (turns("user", "gpt"), "turn 0 is from 'user'"),
        (turns("gpt", "human"), "no answer"),
        ({**turns("human", "gpt"), "image": None}, "image is null"),
    ],
)
def test_an_instruction_that_the_toolkit_could_not_read_is_named(
    row: Any, told: str, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.json", [finetune_row(0), row])
    (finding,) = rows.look_at_rows("finetune", path, {}).findings
    assert f"{path}, row 1: " in str(finding) and told in str(finding)


def test_what_the_toolkit_reads_has_no_findings(tmp_path: Path) -> None:
    good = [finetune_row(0), turns("gpt", "human", "gpt"), turns("human", "gpt", "human", "gpt")]
    assert rows.look_at_rows("finetune", write_rows(tmp_path / "r.json", good), {}).findings == []


def test_the_finetunings_rows_are_an_array_whatever_their_files_name(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [finetune_row(0), finetune_row(1)])
    (finding,) = rows.look_at_rows("finetune", path, {}).findings
    assert "a JSON array of LLaVA's rows" in str(finding)


def test_unused_keys_are_listed_and_marks_refused(tmp_path: Path) -> None:
    row = finetune_row(0)
    row |= {"source": "web"}
    row["conversations"][1]["score"] = 1
    looked = rows.look_at_rows("finetune", write_rows(tmp_path / "a.json", [row]), {})
    assert looked.unused == ["source", "conversations.score"] and not looked.findings
    row["conversations"][1]["weight"] = 0
    looked = rows.look_at_rows("finetune", write_rows(tmp_path / "b.json", [row]), {})
    assert "conversations.weight, which the toolkit does not heed" in str(looked.findings[0])


def test_an_image_that_no_mark_shows_is_counted(tmp_path: Path) -> None:
    row = {**turns("human", "gpt"), "image": "x.png"}
    path = write_rows(tmp_path / "a.json", [row, finetune_row(1)])
    assert rows.look_at_rows("finetune", path, {}).unseen == 1


def test_columns_name_what_the_rows_have(tmp_path: Path) -> None:
    columns = {"text": "caption", "id": "key", "images": "pictures"}
    row = {"key": 7, "caption": "<__dj__image>\na dot", "pictures": ["x.png"], "text": "another"}
    source = write_rows(tmp_path / "in.jsonl", [row])
    looked = rows.look_at_rows("pretrain", source, columns)
    assert (looked.findings, looked.images, looked.unused) == ([], ["x.png"], ["text"])
    convert.convert(source, tmp_path / "out.json", None, "What?", columns)
    (converted,) = json.loads((tmp_path / "out.json").read_text())
    assert converted["id"] == 7 and converted["image"] == "x.png"
    assert converted["conversations"][1]["value"] == "a dot"


# pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_picture_that_would_be_clipped_is_refused(mode: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = str(tmp_path / ("x.png" if mode == "I;16" else "x.tif"))
    picture = image.new(mode, (2, 1))
    picture.putpixel((0, 0), 40_000)
    picture.save(path)
    problems, remarks = pictures.open_images([path], print)
    assert "which the toolkit clips to 0 to 255" in problems[0] and "40000" in problems[0]
    assert remarks == {}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA", "YCbCr"])
def test_every_8_bit_mode_has_a_stated_way(mode: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = str(tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"))
    image.new(mode, (2, 2)).save(path)
    problems, remarks = pictures.open_images([path], print)
    assert problems == []
    expected = {"LA": ["transparent"], "RGBA": ["transparent"], "CMYK": ["CMYK"]}
    assert list(remarks) == expected.get(mode, [])


def test_opaque_alpha_is_no_transparency_and_frames_are_counted(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(tmp_path / "a.png")
    first = image.new("P", (2, 2))
    first.save(tmp_path / "b.gif", save_all=True, append_images=[image.new("L", (2, 2), 9)])
    image.new("P", (2, 2)).save(tmp_path / "c.png", transparency=0)
    paths = [str(tmp_path / name) for name in ("a.png", "b.gif", "c.png")]
    _, remarks = pictures.open_images(paths, print)
    assert remarks["animated"] == paths[1:2]
    assert remarks["transparent"] == paths[2:]


# steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch", "accumulation", "processes", "epochs", "expected"),
    [
        (10_000, 1, 256, 1, 1, 39),  # the baseline's
        (12_000, 1, 128, 1, 1, 93),
        (10_000, 2, 64, 2, 1, 39),
        (100, 1, 256, 1, 1, 1),
        (511, 1, 256, 1, 1.5, 2),  # ceil(1.5 x 1)
    ],
)
def test_steps_are_counted_as_transformers_does(
    count: int, batch: int, accumulation: int, processes: int, epochs: float, expected: int
) -> None:
    assert steps.training_steps(count, batch, accumulation, processes, epochs, None) == expected


def test_a_smoke_of_one_step_has_no_warm_up_and_says_so() -> None:
    for count, ratio in ((1, "0"), (2, "0.03")):
        plan = planned(settings(smoke={"max_steps": count}), variant="smoke")
        assert dict(stage_flags(plan, "finetune"))["--warmup_ratio"] == ratio
        assert any("no warm-up" in line for line in plan.substitutions) == (count == 1)
        record = plan.model_dump(mode="json")
        assert steps.warmup_findings(record, {"pretrain": 9, "finetune": 9}) == []
    record = planned().model_dump(mode="json")
    assert steps.warmup_findings(record, {"pretrain": 512, "finetune": 256}) == []
    assert len(steps.warmup_findings(record, {"pretrain": 511, "finetune": 255})) == 2


def test_one_step_is_the_only_training_that_is_all_warm_up() -> None:
    """transformers' cosine schedule, which the toolkit takes."""
    for total in range(1, 120):
        warmup = math.ceil(0.03 * total)
        rates = [
            step / warmup
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
            for step in range(total)
        ]
        assert (max(rates) == 0) == (total == 1)
