"""Runs that are killed end as if nobody had; see tests.whole_runs.kills.

Many kills at random instants are the stub trainer's, whose supervisor, run folder, launch script
and checkpoints are the real ones. The real engine is killed at three instants that are aimed at,
and one of two ranks of it once: in forks of a process that has the training stack
(tests/support), since what a SIGKILL leaves and what a resume makes of it are the engine's own. A
hundred kills of it under its supervisor are in `./just soak`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.common.own_python import module_argv, safe_environment
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.support.engine_forks import ENGINE
from tests.support.forked import ForkedPopen
from tests.support.preloaded import preloaded
from tests.testbed import REPOSITORY
from tests.whole_runs.kills import (
    Ground,
    Trained,
    aimed,
    bombard,
    damaged,
    differences,
    left_over,
    settings,
)

AIMS = ("step 7", "checkpoint", "final save")
ENOUGH_RUNS = 3
"""An instant that is over in milliseconds may be missed, in one run."""


class LoneGround(Ground):
    """Where runs are started without a supervisor; `log` is for what they say."""

    @property
    def log(self) -> Path:
        return self.place / "log"


class EngineGround(LoneGround):
    """Where the engine trains alone, in a fork of this process, as launch.sh starts it."""

    def start(self, run: RunFolder, *, resume: bool) -> subprocess.Popen[bytes]:
        words = [str(run.path), *["--resume"] * resume]
        assert self._begin(*words, "--prepare").wait(1800) == 0, self.log.read_text()
        return self._begin(*words)

    def _begin(self, *words: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return ForkedPopen(
                module_argv(ENGINE, *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**safe_environment(), "TMPDIR": str(self.temporary)},
            )


class ScriptGround(LoneGround):
    """Where launch.sh is started by hand."""

    def start(self, run: RunFolder, *, resume: bool) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["bash", str(run.path / "launch.sh"), *["--resume"] * resume],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(self.temporary)},
            )


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
    tmp_path_factory: pytest.TempPathFactory, stories: Path, identity_rows: Path
) -> EngineGround:
    """Where the real engine trains."""
    pytest.importorskip("trl")
    place = tmp_path_factory.mktemp("kills") / 'a "place"'
    chance = random.Random(1)  # noqa: S311 - instants, no secrets
    return EngineGround(place, settings(stories, identity_rows), chance)


@pytest.fixture(scope="module")
def undisturbed(ground: EngineGround) -> Trained:
    return ground.undisturbed()[0]


@pytest.mark.e2e
def test_the_engine_that_is_killed_in_a_step_a_save_and_its_end_ends_as_if_it_had_not_been(
    ground: EngineGround, undisturbed: Trained
) -> None:
    left = list(AIMS)
    for _ in range(ENOUGH_RUNS):
        run, resume = ground.make(), False
        while left:
            engine = ground.start(run, resume=resume)
            resume = True
            shot = ground.shoot(run, engine, aimed(left[0]), "everything")
            code = engine.wait(1800)
            assert damaged(run) == [], left[0]
            if shot is None:
                assert code == 0, ground.log.read_text()
                break
            assert code == -signal.SIGKILL
            left.pop(0)
        else:
            assert ground.start(run, resume=resume).wait(1800) == 0, ground.log.read_text()
        assert list(differences(run, undisturbed, ground.temporary)) == []
        if not left:
            return
    pytest.fail(f"never hit: {left}")


@pytest.fixture(scope="module")
def forking_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An interpreter whose ranks are forks."""
    pytest.importorskip("deepspeed")
    with preloaded(tmp_path_factory.mktemp("preloaded") / "of ranks") as python:
        yield python


@pytest.mark.e2e
@pytest.mark.parametrize("deepspeed", [pytest.param("none", marks=pytest.mark.soak), "zero2"])
def test_two_ranks_of_which_one_is_killed_go_on_as_if_it_had_not_been(
    tmp_path: Path, forking_python: Path, stories: Path, identity_rows: Path, deepspeed: str
) -> None:
    """What was trained behind the checkpoint is trained again, at the same losses to the bit.

    Without DeepSpeed two ranks are stopped and resumed in tests/engines/sft/test_bit_exact.py; that
    the supervisor ends a run of which a rank died is tested on the stub's ranks below.
    """
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    chance = random.Random(2)  # noqa: S311
    sets = settings(stories, identity_rows, 2, deepspeed)
    ground = ScriptGround(tmp_path / "place", sets, chance, forking_python)
    run = ground.make()
    script = ground.start(run, resume=False)
    aim = aimed("step 8")
    while not aim.reached(run):
        assert script.poll() is None, ground.log.read_text()
        time.sleep(0.002)
    os.kill(pid_of_rank(run, chance.choice((0, 1))), signal.SIGKILL)
    assert script.wait(1800) != 0
    before = losses(run)
    assert {7, 8} <= before.keys() and damaged(run) == []
    whole, _ = checkpoints.newest_whole(run.checkpoints)
    assert whole is not None and checkpoints.step_of(whole) < max(before)
    assert ground.start(run, resume=True).wait(1800) == 0, ground.log.read_text()
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


@pytest.mark.e2e
def test_a_run_of_which_one_rank_is_killed_ends_and_goes_on(
    tmp_path: Path, stub_trainer: Path, stub_settings: list[str]
) -> None:
    """Of the stub's two ranks, under the real supervisor."""
    model, rows = (Path(text.partition("=")[2]) for text in stub_settings[:2])
    chance = random.Random(2)  # noqa: S311
    ground = Ground(tmp_path / "place", settings(model, rows, 2), chance, stub_trainer)
    run = ground.make()
    supervisor = ground.start(run, resume=False)
    assert ground.shoot(run, supervisor, aimed("step 8"), "trainer") == "trainer"
    assert supervisor.wait(1800) != 0
    ground.settle(run, supervisor)
    end = json.loads(run.termination.read_text())
    assert end["reason"] == "failed" and end["checkpoint"] is not None
    assert damaged(run) == []
    assert ground.start(run, resume=True).wait(1800) == 0, run.train_log.read_text()
    assert sorted(losses(run)) == list(range(1, 13))
    assert list(left_over(run.path)) == [] and damaged(run) == []


def pid_of_rank(run: RunFolder, rank: int) -> int:
    return int(json.loads((run.engine / f"rank-{rank}.json").read_text())["pid"])


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
    full_disk: Callable[..., Path], stories: Path, identity_rows: Path, undisturbed: Trained
) -> None:
    """The verdict on such an end is held by tests/runs/test_ends.py."""
    disk = full_disk(50 << 20, files=5000)
    chance = random.Random(1)  # noqa: S311
    ground = EngineGround(disk, settings(stories, identity_rows), chance)
    run = ground.make()
    engine = ground.start(run, resume=False)
    first = run.checkpoints / "checkpoint-3"
    while not first.exists():
        assert engine.poll() is None, ground.log.read_text()
        time.sleep(0.002)
    size = sum(path.stat().st_size for path in first.iterdir())
    others = fill(disk, size // 2)  # the next one begins, and finds no room in its midst
    assert engine.wait(1800) == 1
    failure = json.loads(run.engine_failure.read_text())
    kept = [path.name for path in checkpoints.listed(run.checkpoints)]
    # the next one may have been quicker than this process, and filled the disk behind it
    lost = f"checkpoint-{checkpoints.step_of(Path(kept[-1])) + 3}"
    assert damaged(run) == []
    assert f"No space left on device while saving {lost}" in failure["message"]
    assert list(left_over(run.path)) == []
    others.unlink()
    assert ground.start(run, resume=True).wait(1800) == 0, ground.log.read_text()
    assert list(differences(run, undisturbed, ground.temporary)) == []
