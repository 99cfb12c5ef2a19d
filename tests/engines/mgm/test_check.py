"""`check` and `train` say before a start what preflight would find in the run's first second."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.mgm.cases import Zoo, finetune_row, pretrain_row, write_rows
from tests.support.command import Answer

pytest.importorskip("PIL")


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path)


def test_a_job_that_has_all_would_start_and_its_steps_are_said(
    zoo: Zoo, cli: Callable[..., Answer]
) -> None:
    answer = cli("check", str(zoo.job))
    assert answer.code == 0, answer.err
    assert "would start" in answer.out
    assert "steps: 2 of pretrain, 4 of finetune" in answer.out  # 600 rows of 256 and 128
    assert "1 there, 0 absent; 1 opened (all), 0 broken" in answer.out
    assert f"this machine, {sys.executable}" in answer.out


def test_the_interpreter_that_trains_is_named_and_not_runners_own(
    zoo: Zoo, cli: Callable[..., Answer]
) -> None:
    python = zoo.folder / "toolkit-python"
    python.symlink_to(sys.executable)
    answer = cli("check", str(zoo.job), "--set", f"python={python}")
    # the link leaves the environment, and with it pillow: the right Python is named there too
    assert str(python) in answer.out + answer.err
    assert sys.executable not in answer.out + answer.err


def test_an_interpreter_without_the_toolkits_packages_is_refused(
    zoo: Zoo, cli: Callable[..., Answer]
) -> None:
    import shutil

    for name in ("open_clip", "timm"):
        shutil.rmtree(zoo.folder / "MGM" / name)
    for command in ("check", "train"):
        answer = cli(command, str(zoo.job))
        assert answer.code == 3
        assert f"python: {sys.executable}, which has no open_clip, timm, where" in answer.err
        assert "--set python=PATH" in answer.err
    assert not (zoo.folder / "runs").exists()


def test_a_name_that_selects_another_class_is_refused(zoo: Zoo, cli: Callable[..., Answer]) -> None:
    answer = cli("check", str(zoo.job), "--set", "experiment_name=x8x7b")
    assert answer.code == 2
    assert "experiment_name" in answer.err and "8x7b" in answer.err
    assert "would start" not in answer.out


def test_a_broken_image_is_refused(zoo: Zoo, cli: Callable[..., Answer]) -> None:
    whole = zoo.draw("1.png").read_bytes()
    (zoo.images / "1.png").write_bytes(whole[:45])
    row = {**pretrain_row(0), "images": ["images/1.png"]}
    zoo.write_rows([row, *map(pretrain_row, range(600))])
    answer = cli("check", str(zoo.job))
    assert answer.code == 2
    assert "pretrain.image_folder" in answer.err and "1.png" in answer.err


def test_less_host_memory_than_preflight_knows_to_be_needed_is_refused(
    zoo: Zoo, cli: Callable[..., Answer]
) -> None:
    with (zoo.folder / "openai/clip/model.safetensors").open("wb") as weights:
        weights.truncate(400 << 20)  # read twice: 0.78 GiB
    for command in ("check", "train"):
        answer = cli(command, str(zoo.job), "--set", "budget.host_memory=700MiB")
        assert answer.code == 3
        assert "budget.host_memory: 0.68 GiB where 0.78 GiB or more" in answer.err
    assert cli("check", str(zoo.job), "--set", "budget.host_memory=900MiB").code == 0


@pytest.mark.parametrize(("stage", "rows"), [("pretrain", 500), ("finetune", 130)])
def test_a_training_of_nothing_but_warm_up_is_refused(
    stage: str, rows: int, zoo: Zoo, cli: Callable[..., Answer]
) -> None:
    if stage == "pretrain":
        zoo.write_rows([pretrain_row(number) for number in range(rows)])
    else:
        write_rows(zoo.finetune, [finetune_row(number) for number in range(rows)])
    answer = cli("check", str(zoo.job), "--json")
    assert answer.code == 2
    assert f"{stage}.data_path" in answer.err and "learning rate 0" in answer.err
    assert cli("check", str(zoo.job), "--set", "num_train_epochs=2").code == 0


def test_rows_with_names_of_their_own_are_told_how_to_be_named(
    zoo: Zoo, cli: Callable[..., Answer]
) -> None:
    rows = [{"key": "1", "caption": "a dot", "images": ["images/0.png"]}] * 600
    zoo.write_rows(rows)
    answer = cli("check", str(zoo.job), "--json")
    assert answer.code == 2
    assert answer.err.count("problem") == 1
    assert "line 1: no id (its keys: key, caption, images)" in answer.err
    assert "pretrain.columns" in answer.err
    answer = cli("check", str(zoo.job), "--set", "pretrain.columns={id: key, text: caption}")
    assert answer.code == 0, answer.err


def test_what_is_trained_otherwise_than_viewers_show_it_is_said(
    zoo: Zoo, cli: Callable[..., Answer]
) -> None:
    from PIL import Image

    zoo.draw("clear.png", "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    zoo.draw("turned.jpg", exif=exif)
    names = ["clear.png", "turned.jpg"]
    rows = [{**pretrain_row(0), "images": [f"images/{name}"]} for name in names]
    zoo.write_rows([*rows, *map(pretrain_row, range(600))])
    answer = cli("check", str(zoo.job), "--json")
    assert answer.code == 0, answer.err
    warnings = "\n".join(json.loads(answer.out)["warnings"])
    assert "1 of 3 opened images have transparent parts" in warnings and "clear.png" in warnings
    assert "EXIF orientation" in warnings and "turned.jpg" in warnings
