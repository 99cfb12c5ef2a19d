"""Runs that are killed end as if nobody had; see tests.whole_runs.kills.

Many kills at random instants are the stub trainer's, whose supervisor, run folder, launch script
and checkpoints are the real ones. The real engine is killed at three instants that are aimed at,
and two ranks of it once each; a hundred kills of it are in `./just soak`.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.whole_runs.kills import (
    Ground,
    Trained,
    aimed,
    bombard,
    damaged,
    judge,
    left_over,
    settings,
    trained,
)

REAL = {"STUB_REAL_ENGINE": "1"}
AIMS = (("step 7", "trainer"), ("checkpoint", "everything"), ("final save", "both"))
ENOUGH_RUNS = 3
"""An instant that is over in milliseconds may be missed, in one run."""


@pytest.mark.e2e
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, stub_trainer: Path, stub_settings: list[str]
) -> None:
    said: list[str] = []
    model, rows = (text.partition("=")[2] for text in stub_settings[:2])
    sets = settings(Path(model), Path(rows))
    tally = bombard(20, tmp_path / 'a "place"', sets, seed=20, say=said.append, python=stub_trainer)
    assert tally.wrong == [], "\n".join(said)
    assert tally.count == 20, "\n".join(said)


@pytest.fixture(scope="module")
def ground(
    tmp_path_factory: pytest.TempPathFactory, stub_trainer: Path, stories: Path, identity_rows: Path
) -> Ground:
    """Where the real engine trains."""
    place = tmp_path_factory.mktemp("kills") / 'a "place"'
    chance = random.Random(1)  # noqa: S311 - instants, no secrets
    return Ground(place, settings(stories, identity_rows), chance, stub_trainer, REAL)


@pytest.fixture(scope="module")
def undisturbed(ground: Ground) -> Trained:
    return ground.undisturbed()[0]


@pytest.mark.e2e
def test_the_engine_that_is_killed_in_a_step_a_save_and_its_end_ends_as_if_it_had_not_been(
    ground: Ground, undisturbed: Trained
) -> None:
    left = list(AIMS)
    for _ in range(ENOUGH_RUNS):
        run, resume = ground.make(), False
        while left:
            name, victim = left[0]
            supervisor = ground.start(run, resume=resume)
            resume = True
            shot = ground.shoot(run, supervisor, aimed(name), victim)
            supervisor.wait(1800)
            ground.settle(run, supervisor)
            assert damaged(run) == [], name
            if shot is None:
                break
            left.pop(0)
        else:
            assert ground.start(run, resume=resume).wait(1800) == 0
        assert list(judge(run, undisturbed, ground.temporary)) == []
        if not left:
            return
    pytest.fail(f"never hit: {left}")


@pytest.mark.e2e
@pytest.mark.parametrize("deepspeed", [pytest.param("none", marks=pytest.mark.soak), "zero2"])
def test_two_ranks_of_which_one_is_killed_go_on_as_if_it_had_not_been(
    tmp_path: Path, stub_trainer: Path, stories: Path, identity_rows: Path, deepspeed: str
) -> None:
    """What was trained behind the checkpoint is trained again, at the same losses to the bit.

    Without DeepSpeed two ranks are stopped and resumed in tests/engines/sft/test_bit_exact.py.
    """
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    chance = random.Random(2)  # noqa: S311
    sets = settings(stories, identity_rows, 2, deepspeed)
    ground = Ground(tmp_path / "place", sets, chance, stub_trainer, REAL)
    run = ground.make()
    supervisor = ground.start(run, resume=False)
    assert ground.shoot(run, supervisor, aimed("step 8"), "trainer") == "trainer"
    assert supervisor.wait(1800) != 0
    ground.settle(run, supervisor)
    before = losses(run)
    assert {7, 8} <= before.keys() and damaged(run) == []
    whole, _ = checkpoints.newest_whole(run.checkpoints)
    assert whole is not None and checkpoints.step_of(whole) < max(before)
    assert ground.start(run, resume=True).wait(1800) == 0, run.train_log.read_text()
    after = losses(run)
    assert sorted(after) == list(range(1, 13))
    assert {step: after[step] for step in before} == before
    assert list(left_over(run.path)) == [] and damaged(run) == []
    # two processes trained one adapter
    ranks = sorted(path.name for path in run.engine.glob("rank-*.json"))
    assert ranks == ["rank-0.json", "rank-1.json"]
    base = transformers.AutoModelForCausalLM.from_pretrained(str(stories))
    model = peft.PeftModel.from_pretrained(base, str(run.adapter))
    shapes = {tuple(p.shape) for n, p in model.named_parameters() if "q_proj.lora_B" in n}
    assert shapes == {(64, 4)}
    assert all(bool(p.any()) for n, p in model.named_parameters() if "lora_B" in n)


def losses(run: RunFolder) -> dict[int, float]:
    """Step to loss, each step once."""
    found = trained_losses(run)
    assert len(found) == len(dict(found))
    return dict(found)


def trained_losses(run: RunFolder) -> list[tuple[int, float]]:
    lines = map(json.loads, run.metrics.read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_what_is_left_over_is_seen(tmp_path: Path) -> None:
    for name in ("engine/.rank-0.json.abc.tmp", "checkpoints/.staging-3/x", ".lock", "plan.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert sorted(left_over(tmp_path)) == ["checkpoints/.staging-3", "engine/.rank-0.json.abc.tmp"]


def fill(place: Path, left_bytes: int) -> Path:
    """A file that leaves so much of the file system."""
    others = place / "somebody else's"
    with others.open("wb", buffering=0) as stream:
        while (free := shutil.disk_usage(place).free) > left_bytes:
            stream.write(b"\0" * min(65536, free - left_bytes))
    return others


@pytest.mark.e2e
def test_a_disk_of_50_mb_that_fills_during_a_checkpoint_costs_none_and_the_run_goes_on(
    full_disk: Callable[..., Path],
    stub_trainer: Path,
    stories: Path,
    identity_rows: Path,
    undisturbed: Trained,
) -> None:
    disk = full_disk(50 << 20, files=5000)
    chance = random.Random(1)  # noqa: S311
    ground = Ground(disk, settings(stories, identity_rows), chance, stub_trainer, REAL)
    run = ground.make()
    supervisor = ground.start(run, resume=False)
    first = run.checkpoints / "checkpoint-3"
    while not first.exists():
        assert supervisor.poll() is None, run.train_log.read_text()
        time.sleep(0.002)
    size = sum(path.stat().st_size for path in first.iterdir())
    others = fill(disk, size // 2)  # the next one begins, and finds no room in its midst
    assert supervisor.wait(1800) == 1
    end = json.loads(run.termination.read_text())
    assert end["reason"] == "failed"
    kept = [path.name for path in checkpoints.listed(run.checkpoints)]
    # the next one may have been quicker than this process, and filled the disk behind it
    saved, lost = kept[-1], f"checkpoint-{checkpoints.step_of(Path(kept[-1])) + 3}"
    assert end["checkpoint"] == f"checkpoints/{saved}" and damaged(run) == []
    assert f"No space left on device while saving {lost}" in end["message"]
    assert list(left_over(run.path)) == []
    others.unlink()
    assert ground.start(run, resume=True).wait(1800) == 0
    assert trained(run) == undisturbed
    assert list(left_over(run.path)) == [] and list(ground.temporary.iterdir()) == []
