"""Every image of the rows is opened before the start; what was opened once is known by content."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runner.common.errors import SpecError
from runner.data import image_files
from runner.data.image_files import NAMED
from runner.data.prepare import prepare
from runner.data.summary import cleaning_lines
from runner.engines.sft.plan import PlannedModel, PlannedVision, SftPlan
from tests.engines.sft.tiny import plan_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))


def plan_with(folder: Path, images: list[str], **data: Any) -> SftPlan:
    """A plan for rows of one image each."""
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"<image>\nWhat is {number}?"},
                        {"role": "assistant", "content": f"It is {number}."},
                    ],
                    "image": name,
                }
            )
            + "\n"
            for number, name in enumerate(images)
        )
    )
    plan = plan_of()
    train = plan.rows.train.model_copy(update={"path": str(rows), "sha256": None})
    model = PlannedModel(kind="folder", id="tower", folder="tower")
    return plan.model_copy(
        update={
            "rows": plan.rows.model_copy(update={"train": train}),
            "vision": PlannedVision(
                model=model, feature_layer=-2, feature_select="default", projector_act="gelu"
            ),
            "data": plan.data.model_copy(update={"split": None, **data}),
        }
    )


def picture(path: Path, colour: Any = "red", mode: str = "RGB", **options: Any) -> None:
    Image.new(mode, (20, 10), colour).save(path, **options)


def old(*paths: Path) -> None:
    """Let files be older than what can change again within its mtime."""
    for path in paths:
        os.utime(path, (1_700_000_000, 1_700_000_000))


def quiet(_: str) -> None: ...


def test_conversions_are_counted_in_the_report(tmp_path: Path) -> None:
    picture(tmp_path / "plain.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "turned.jpg", exif=exif)
    picture(tmp_path / "glass.png", (255, 0, 0, 10), "RGBA")
    picture(tmp_path / "deep.png", 40_000, "I;16")
    picture(tmp_path / "ink.jpg", (0, 9, 9, 0), "CMYK")
    frames = [Image.new("L", (9, 9), value) for value in (0, 99)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    shutil.copy(tmp_path / "plain.jpg", tmp_path / "jpeg.png")
    names = [p.name for p in sorted(tmp_path.iterdir()) if p.suffix in (".jpg", ".png", ".gif")]
    prepared = prepare(plan_with(tmp_path, names), say=quiet)
    assert prepared.report["images"] == {
        "files": 7,
        "background": "white",
        "exif_turned": 1,
        "alpha_composited": 1,
        "scaled_16_bit": 1,
        "scaled_32_bit": 0,
        "other_colours": 1,
        "animated": 1,
        "wrong_suffix": 1,
    }
    line = next(text for text in cleaning_lines(prepared.report) if "images" in text)
    assert line.startswith("7 images, all of them opened: 1 turned by EXIF's orientation; 1 with")
    assert "put on white" in line and "1 animated or of several pages" in line


def test_broken_images_are_named_by_row_and_all_counted(tmp_path: Path) -> None:
    names = []
    for number in range(15):
        picture(tmp_path / f"{number}.png", (number, 0, 0))
        names.append(f"{number}.png")
    for number in range(2, 14):
        (tmp_path / f"{number}.png").write_bytes(b"" if number % 2 else b"not an image")
    with pytest.raises(SpecError) as caught:
        prepare(plan_with(tmp_path, names), say=quiet)
    error = caught.value
    assert error.exit_code == 2
    assert len(error.problems) == NAMED + 1
    first, last = error.problems[0], error.problems[-1]
    assert first.where == f"{tmp_path / 'rows.jsonl'}:3" and first.field == "data.train -> images"
    assert first.value == str(tmp_path / "2.png") and "no image that Pillow knows" in first.problem
    assert "it is empty" in error.problems[1].problem
    assert last.problem == f"12 of 15 images can't be read, the first {NAMED} of them above"
    assert [p.where.rsplit(":", 1)[1] for p in error.problems[:-1]] == [
        str(line) for line in range(3, 13)
    ]


def test_the_truncated_photograph_is_found_before_the_start(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "cases" / "v-trunc" / "t.jpg", tmp_path / "t.jpg")
    with pytest.raises(SpecError) as caught:
        prepare(plan_with(tmp_path, ["t.jpg"]), say=quiet)
    assert "broken or cut short" in caught.value.problems[0].problem
    assert caught.value.problems[0].where.endswith("rows.jsonl:1")


def test_a_second_look_decodes_nothing_and_a_changed_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    plain = image_files.decode

    def counting(path: Any) -> Any:
        decoded.append(Path(path).name)
        return plain(path)

    monkeypatch.setattr(image_files, "decode", counting)
    names = []
    for number in range(600):  # more than are handed out at once
        names.append(f"{number:03}.png")
        picture(tmp_path / names[-1], (number % 256, number // 256, 7))
        old(tmp_path / names[-1])
    plan = plan_with(tmp_path, names)
    first = prepare(plan, say=quiet).report["images"]
    assert sorted(decoded) == names and first["files"] == 600
    decoded.clear()
    assert prepare(plan, say=quiet).report["images"] == first
    assert decoded == []
    # the same content elsewhere is known, another content is not
    shutil.copytree(tmp_path, tmp_path.parent / "moved", ignore=shutil.ignore_patterns("cache"))
    moved = plan_with(tmp_path.parent / "moved", names)
    prepare(moved, say=quiet)
    assert decoded == []
    picture(tmp_path / "007.png", "blue")
    prepare(plan, say=quiet)
    assert decoded == ["007.png"]
    decoded.clear()
    (tmp_path / "008.png").write_bytes(b"oh")
    with pytest.raises(SpecError, match="no image that Pillow knows"):
        prepare(plan, say=quiet)
    (tmp_path / "009.png").unlink()
    with pytest.raises(SpecError) as caught:
        prepare(plan, say=quiet)
    assert "2 of 600 images can't be read" in caught.value.problems[-1].problem


def test_a_cache_that_can_not_be_read_or_written_costs_time_only(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    plan = plan_with(tmp_path, ["a.png"])
    prepare(plan, say=quiet)
    place = tmp_path / "cache" / "prepared" / image_files.CACHE
    for content in (b"\0\xff not json\n[1]\n{}\n", b'{"path": 3, "key": 4}\n'):
        place.write_bytes(content)
        assert prepare(plan, say=quiet).report["images"]["files"] == 1
    place.unlink()
    place.mkdir()
    assert prepare(plan, say=quiet).report["images"]["files"] == 1


def test_progress_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "SAY_SECONDS", 0.0)
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    said: list[str] = []
    prepare(plan_with(tmp_path, ["a.png", "b.png"]), say=said.append)
    assert said == ["images: 1 of 2 opened", "images: 2 of 2 opened"]


def test_the_background_is_no_part_of_the_rows_nor_of_an_old_plans_hash(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (1, 2, 3, 4), "RGBA")
    white = plan_with(tmp_path, ["a.png"])
    black = plan_with(tmp_path, ["a.png"], image_background="black")
    assert prepare(white, say=quiet).folder == prepare(black, say=quiet).folder
    assert prepare(black, say=quiet).report["images"]["background"] == "black"
    assert white.hash != black.hash
    assert "image_background" not in white.deciding()["data"]


def test_the_stated_colour_is_checked(tmp_path: Path) -> None:
    from runner.engines.load import load_job

    vision = "vision: {model: a/c}\n"
    (tmp_path / "job.yaml").write_text(f"model: a/b\n{vision}data: {{train: r.jsonl}}\n")
    job = str(tmp_path / "job.yaml")
    loaded: Any = load_job(job, ["data.image_background=#0a0B0c"])
    assert loaded.job.data.image_background == "#0a0B0c"
    with pytest.raises(SpecError) as caught:
        load_job(job, ["data.image_background=mauve"])
    assert "white, black, gray" in (caught.value.problems[0].expected or "")
