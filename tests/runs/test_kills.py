"""Runs that are killed at random instants end as if nobody had; see tests.runs.kills."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.runs import checkpoints
from tests.runs.conftest import SHARED
from tests.runs.kills import Ground, bombard, left_over, settings, trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "processes", "deepspeed"), [(20, 1, "none"), (4, 2, "none"), (4, 2, "zero2")]
)
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    tmp_path: Path, stories: Path, identity_rows: Path, count: int, processes: int, deepspeed: str
) -> None:
    said: list[str] = []
    sets = settings(SHARED, processes, deepspeed)
    tally = bombard(count, tmp_path / 'a "place"', sets, seed=count, say=said.append)
    assert tally.wrong == [], "\n".join(said)
    assert tally.count == count, "\n".join(said)


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


@pytest.mark.slow
def test_a_disk_of_50_mb_that_fills_during_a_checkpoint_costs_none_and_the_run_goes_on(
    full_disk: Callable[..., Path], stories: Path, identity_rows: Path
) -> None:
    disk = full_disk(50 << 20, files=5000)
    ground = Ground(disk, settings(SHARED, 1, "none"), random.Random(1))  # noqa: S311
    wanted, _ = ground.undisturbed()
    run = ground.make()
    supervisor = ground.start(run, resume=False)
    first = run.checkpoints / "checkpoint-3"
    while not first.exists():
        assert supervisor.poll() is None, run.train_log.read_text()
        time.sleep(0.002)
    size = sum(path.stat().st_size for path in first.iterdir())
    others = fill(disk, size // 2)  # the next one begins, and finds no room in its midst
    assert supervisor.wait(120) == 1
    end = json.loads(run.termination.read_text())
    assert end["reason"] == "failed" and end["checkpoint"] == "checkpoints/checkpoint-3"
    assert "No space left on device while saving checkpoint-6" in end["message"]
    assert [path.name for path in checkpoints.listed(run.checkpoints)] == ["checkpoint-3"]
    assert checkpoints.damage(first) is None
    assert list(left_over(run.path)) == []
    others.unlink()
    assert ground.start(run, resume=True).wait(240) == 0
    assert trained(run) == wanted
    assert list(left_over(run.path)) == [] and list(ground.temporary.iterdir()) == []
