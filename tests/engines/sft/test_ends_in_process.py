"""What of a run's end is the engine's: an impossible loss, a dry run, half the rows, a checkpoint's
size.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from runner.common import durable
from runner.engines.sft.inside.survey import survey
from runner.engines.sft.inside.train.loss_check import NonFiniteLoss
from runner.engines.sft.recovery import next_plan
from runner.plans.plan_file import plan_yaml
from runner.runs import checkpoints
from runner.runs.outcome import Outcome, Reason
from tests.engines.sft.in_process import Interruptions, make_rows, plan_of, run


@pytest.fixture(scope="module")
def inputs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Model and rows."""
    return shared / "models" / "stories260k", make_rows(
        tmp_path_factory.mktemp("rows") / "rows.jsonl"
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))


def test_an_impossible_loss_ends_training(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """The run's verdict of it is held by tests/whole_runs/test_ends.py."""
    training = {"learning_rate": 100.0, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    plan = plan_of(*inputs, training=training)
    with pytest.raises(NonFiniteLoss):
        run(plan, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "engine" / "result.json").exists()


def test_a_dry_run_sends_one_batch_through_the_model_and_trains_nothing(
    inputs: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """That it goes the whole way from the command to its verdict is held by
    tests/runs/test_jobs.py.
    """
    plan = plan_of(*inputs).model_copy(update={"variant": "dry_run"})
    ended = run(plan, tmp_path / "run")
    assert ended.code == 0 and ended.losses == []
    told = capfd.readouterr()
    assert "one batch went through the model, loss" in told.out + told.err
    result = durable.read_json(ended.folder.engine_result)
    assert (result["completed"], result["dry_run"], result["steps"]) == (True, True, 0)
    assert not ended.folder.adapter.exists()
    assert checkpoints.listed(ended.folder.checkpoints) == []


def test_half_the_rows_at_once_go_on_at_the_losses_of_all(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """As on_oom: recover has it: stopped for memory, one step down, on from the checkpoint."""
    training = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "eval_steps": None,
    }
    plan = plan_of(*inputs, lora={"lora_dropout": 0.0}, training=training, on_oom="recover")
    plan = plan.model_copy(update={"on_oom": "recover"})
    whole = run(plan, tmp_path / "whole")
    asked = Interruptions({3: (signal.SIGUSR1, signal.SIGTERM)})
    stopped = run(plan, tmp_path / "down", meanwhile=asked)
    assert stopped.code == 143
    found = next_plan(plan, Outcome(Reason.OVER_BUDGET, 75, "", steps=3), stopped.folder)
    assert found is not None
    lower, told = found
    assert told == "2 rows x 2 accumulated in place of 4 x 1"
    durable.write_text(stopped.folder.plan, plan_yaml(lower))
    ended = run(lower, tmp_path / "down", resume=True)
    assert ended.code == 0
    assert [step for step, _, _ in ended.losses] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss, _ in ended.losses] == pytest.approx(
        [loss for _, loss, _ in whole.losses], rel=1e-5
    )


def test_a_checkpoint_takes_about_the_disk_that_was_told(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    plan = plan_of(*inputs, training={"max_steps": 2, "save_steps": 2, "eval_steps": None})
    told = survey(plan, 0)["trainings"][0]
    assert (told["steps"], told["saves"]) == (2, 1)
    ended = run(plan, tmp_path / "run")
    (saved,) = checkpoints.listed(ended.folder.checkpoints)
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    assert told["checkpoint_bytes"] == pytest.approx(size, rel=0.25)
