"""Real trainings of a tiny model: stages, saves, the best model, early ends and resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.common import durable
from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.inside.train.schedule import learning_rate_at
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from tests.engines.sft.tiny import make_trainer, plan_of, run_folder

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")
pytestmark = pytest.mark.e2e

TWO_STAGES = {
    "stages": [
        {"max_steps": 3, "learning_rate": 1e-4, "save": "never"},
        {"max_steps": 3, "learning_rate": 1e-5, "save": "every_step"},
    ],
    "eval_steps": 2,
}
BEST = {
    "max_steps": 9,
    "eval_steps": 1,
    "save_steps": 1,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "early_stopping_patience": 3,
}


def metrics(folder: RunFolder, name: str) -> dict[int, Any]:
    """step -> figure, of the lines that have it."""
    lines = durable.read_jsonl(folder.metrics)
    return {line["step"]: line[name] for line in lines if name in line}


def saved(folder: RunFolder) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.listed(folder.checkpoints)]


def adapter_of(folder: RunFolder, step: int) -> bytes:
    path = folder.checkpoints / checkpoints.name_of(step) / "adapter_model.safetensors"
    return path.read_bytes()


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of both stages, shared by tests that copy before they change it."""
    folder = run_folder(tmp_path_factory.mktemp("two-stages"))
    trainer = make_trainer(plan_of(TWO_STAGES), folder)
    trainer.train()
    (folder.path / "statistics.json").write_text(json.dumps(trainer.records.statistics()))
    return folder


def copy_of(folder: RunFolder, place: Path, *, until: int) -> RunFolder:
    """The run as a kill right after its checkpoint `until` would have left it."""
    shutil.copytree(folder.path, place)
    copy = RunFolder(place)
    for path in checkpoints.listed(copy.checkpoints):
        if checkpoints.step_of(path) > until:
            shutil.rmtree(path)
    return copy


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The eval losses that evaluations give, in order."""
    from runner.engines.sft.inside.train.trainer import RunTrainer

    losses: list[float] = []
    real = RunTrainer.evaluation_loop

    def evaluation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real(self, *args, **kwargs)
        output.metrics["eval_loss"] = losses.pop(0)
        return output

    monkeypatch.setattr(RunTrainer, "evaluation_loop", evaluation_loop)
    yield losses


def test_each_step_is_made_with_its_stages_rate_and_saved_by_its_stages_policy(
    two_stages: RunFolder,
) -> None:
    rates = metrics(two_stages, "learning_rate")
    assert rates == {1: 1e-4, 2: 1e-4, 3: 1e-4, 4: 1e-5, 5: 1e-5, 6: 1e-5}
    assert saved(two_stages) == [4, 5, 6]
    assert all(checkpoints.damage(p) is None for p in checkpoints.listed(two_stages.checkpoints))
    assert list(metrics(two_stages, "eval_loss")) == [2, 4, 6]
    facts = checkpoints.facts_of(two_stages.checkpoints / "checkpoint-4")
    assert facts == {
        "step": 4,
        "phase": "",
        "phase_step": 4,
        "plan": plan_of(TWO_STAGES).hash,
        "eval_loss": metrics(two_stages, "eval_loss")[4],
        "tokens": metrics(two_stages, "tokens")[4],
    }


def test_times_are_told_apart(two_stages: RunFolder) -> None:
    told = json.loads((two_stages.path / "statistics.json").read_text())
    assert told["steps"] == 6
    assert 0 < told["seconds_per_step_median"] <= told["seconds_per_step_p95"]
    assert told["evaluation_seconds"] > 0
    assert told["saving_seconds"] > 0
    tokens = metrics(two_stages, "tokens")[6]
    assert told["tokens_per_second"] == pytest.approx(tokens / told["training_seconds"], rel=0.01)


@pytest.mark.parametrize("until", [4, 5])
def test_a_run_killed_in_its_second_stage_ends_as_if_it_had_not_been(
    two_stages: RunFolder, tmp_path: Path, until: int
) -> None:
    folder = copy_of(two_stages, tmp_path / "run", until=until)
    trainer = make_trainer(plan_of(TWO_STAGES), folder, resumed_step=until)
    trainer.train(resume_from_checkpoint=str(folder.checkpoints / f"checkpoint-{until}"))
    assert saved(folder) == [4, 5, 6]
    for name in ("learning_rate", "loss", "eval_loss", "tokens"):
        assert metrics(folder, name) == metrics(two_stages, name)
    assert adapter_of(folder, 6) == adapter_of(two_stages, 6)
    assert folder.best.read_text() == two_stages.best.read_text()
    assert trainer.records.first_loss == metrics(two_stages, "loss")[1]


def test_a_checkpoint_of_the_last_step_trains_no_step_more(
    two_stages: RunFolder, tmp_path: Path
) -> None:
    folder = copy_of(two_stages, tmp_path / "run", until=6)
    trainer = make_trainer(plan_of(TWO_STAGES), folder, resumed_step=6)
    trainer.train(resume_from_checkpoint=str(folder.checkpoints / "checkpoint-6"))
    assert trainer.state.global_step == 6
    assert saved(folder) == [4, 5, 6]
    assert folder.metrics.read_text() == two_stages.metrics.read_text()
    assert trainer.records.last_loss == metrics(two_stages, "loss")[6]


def test_the_best_checkpoint_outlives_the_newest_and_patience_ends_the_run(
    tmp_path: Path, rigged: list[float]
) -> None:
    folder = run_folder(tmp_path / "run")
    rigged += [3.0, 2.0, 1.0, 1.5, 1.2, 1.0]
    trainer = make_trainer(plan_of(BEST), folder)
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.stopped_early == (
        "stopped early: eval_loss did not fall in 3 evaluations in a row; the lowest is 1, "
        "at step 3"
    )
    assert saved(folder) == [3, 5, 6]
    assert trainer.best_checkpoint() == folder.checkpoints / "checkpoint-3"
    assert trainer.best_record() == {
        "step": 3,
        "eval_loss": 1.0,
        "checkpoint": "checkpoints/checkpoint-3",
    }
    assert trainer.evaluated_last_step
    rigged += [0.1]  # of the result, after training: no step's
    trainer.evaluate()
    assert trainer.best_record()["step"] == 3

    # killed after step 5: it still knows the best, and how many evaluations were no better
    copy = copy_of(folder, tmp_path / "copy", until=5)
    rigged += [1.1]
    again = make_trainer(plan_of(BEST), copy, resumed_step=5)
    again.train(resume_from_checkpoint=str(copy.checkpoints / "checkpoint-5"))
    assert again.state.global_step == 6
    assert again.stopped_early == trainer.stopped_early
    assert again.best_checkpoint() == copy.checkpoints / "checkpoint-3"
    assert saved(copy) == [3, 5, 6]

    # killed after the step that was the last: nothing is trained, and it is known why
    rest = make_trainer(plan_of(BEST), folder, resumed_step=6)
    rest.train(resume_from_checkpoint=str(folder.checkpoints / "checkpoint-6"))
    assert rest.state.global_step == 6
    assert rest.stopped_early == trainer.stopped_early
    assert rigged == []


def test_a_resume_forgets_evaluations_that_come_again(tmp_path: Path, rigged: list[float]) -> None:
    settings = {**BEST, "max_steps": 4, "early_stopping_patience": 2}
    folder = run_folder(tmp_path / "run")
    rigged += [3.0, 2.0, 2.5, 2.4]
    make_trainer(plan_of(settings), folder).train()
    copy = copy_of(folder, tmp_path / "copy", until=3)
    rigged += [1.0]
    again = make_trainer(plan_of(settings), copy, resumed_step=3)
    again.train(resume_from_checkpoint=str(copy.checkpoints / "checkpoint-3"))
    assert again.stopped_early is None
    assert again.best_record()["step"] == 4
    assert metrics(copy, "eval_loss") == {1: 3.0, 2: 2.0, 3: 2.5, 4: 1.0}


def test_an_early_end_is_a_last_step_and_saved_as_one(tmp_path: Path, rigged: list[float]) -> None:
    folder = run_folder(tmp_path / "run")
    rigged += [1.0, 1.0]
    settings = {"max_steps": 9, "eval_steps": 1, "save_steps": 5, "early_stopping_patience": 1}
    trainer = make_trainer(plan_of(settings), folder)
    trainer.train()
    assert (trainer.state.global_step, saved(folder)) == (2, [2])
    assert trainer.best_checkpoint() is None  # not asked for: the result is the last


def test_no_best_among_the_saved_is_said(
    tmp_path: Path, rigged: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "stages": [{"max_steps": 2, "learning_rate": 1e-4}],
        "eval_steps": 1,
        "load_best_model_at_end": True,
    }
    rigged += [2.0, float("nan")]
    folder = run_folder(tmp_path / "run")
    trainer = make_trainer(plan_of(settings), folder)
    trainer.train()
    assert (trainer.best_checkpoint(), trainer.best_record()) == (None, None)
    assert "no evaluated step has a whole checkpoint" in capsys.readouterr().err
    assert metrics(folder, "eval_loss") == {1: 2.0, 2: None}


def test_a_second_training_goes_on_counting_the_runs_steps(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    first = plan_of({"max_steps": 2, "save_steps": 2, "save_total_limit": 1}, phase="projector")
    make_trainer(first, folder).train()
    settings = {"max_steps": 3, "save_steps": 1, "save_total_limit": 2, "eval_steps": 1}
    second = plan_of(settings, phase="adapter")
    trainer = make_trainer(second, folder, step_offset=2)
    trainer.train()
    lines = list(durable.read_jsonl(folder.metrics))
    trained = [(line["step"], line["phase"]) for line in lines if "loss" in line]
    assert trained == [
        (1, "projector"),
        (2, "projector"),
        (3, "adapter"),
        (4, "adapter"),
        (5, "adapter"),
    ]
    tokens = metrics(folder, "tokens")
    assert tokens[5] == pytest.approx(2.5 * tokens[2])
    assert saved(folder) == [2, 4, 5]  # the first training's is not among the second's two
    state = json.loads((folder.checkpoints / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    whole = folder.metrics.read_text()

    copy = copy_of(folder, tmp_path / "copy", until=4)
    again = make_trainer(second, copy, resumed_step=4, step_offset=2)
    again.train(resume_from_checkpoint=str(copy.checkpoints / "checkpoint-4"))
    assert saved(copy) == [2, 4, 5]
    assert adapter_of(copy, 5) == adapter_of(folder, 5)
    assert metrics(copy, "loss") == metrics(folder, "loss")
    assert copy.metrics.read_text().splitlines()[:4] == whole.splitlines()[:4]


def test_without_stages_a_line_has_the_rate_that_its_own_step_was_made_with(
    tmp_path: Path,
) -> None:
    folder = run_folder(tmp_path / "run")
    plan = plan_of(
        {
            "max_steps": 8,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.25,
            "logging_steps": 2,
            "gradient_accumulation_steps": 2,
        }
    )
    make_trainer(plan, folder).train()
    assert metrics(folder, "learning_rate") == {
        step: pytest.approx(learning_rate_at(plan.training, step - 1, 8), rel=1e-12)
        for step in (1, 2, 4, 6, 8)
    }
    assert saved(folder) == []


def test_a_step_that_the_scaler_skips_moves_no_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "run")
    trainer = make_trainer(plan_of(TWO_STAGES), folder)
    skipped = property(lambda _: trainer.state.global_step in (0, 2))
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", skipped)
    trainer.train()
    assert metrics(folder, "learning_rate") == {
        **dict.fromkeys((1, 2, 3), 1e-4),
        **dict.fromkeys((4, 5, 6), 1e-5),
    }


def test_a_rate_that_is_not_the_stages_is_refused_not_trained(tmp_path: Path) -> None:
    from torch.optim.lr_scheduler import LambdaLR

    trainer = make_trainer(plan_of(TWO_STAGES), run_folder(tmp_path / "run"))

    def replaced(num_training_steps: int, optimizer: Any = None) -> Any:
        trainer.lr_scheduler = LambdaLR(trainer.optimizer, lambda step: 1 - step / 6)
        return trainer.lr_scheduler

    trainer.create_scheduler = replaced  # as DeepSpeed does to a scheduler that it is given
    with pytest.raises(RunnerError, match=r"step 2 would be made with learning rate 8\.3333"):
        trainer.train()


def test_a_stop_in_mid_evaluation_saves_where_training_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.sft.inside.control import Control

    folder = run_folder(tmp_path / "run")
    control = Control(folder, 0)
    plan = plan_of({"max_steps": 9, "eval_steps": 3})
    trainer = make_trainer(plan, folder, control=control)
    real = trainer.prediction_step

    def asked_meanwhile(*args: Any, **kwargs: Any) -> Any:
        control.checkpoint_requested = control.stop_requested = True
        return real(*args, **kwargs)

    trainer.prediction_step = asked_meanwhile
    trainer.train()
    assert (trainer.state.global_step, saved(folder)) == (3, [3])
    assert trainer.stopped_early is None
    assert not control.checkpoint_requested


@pytest.mark.parametrize("settings", [{}, {"early_stopping_patience": 1}])
@pytest.mark.parametrize("at", [3, 6])
def test_an_evaluation_that_was_broken_off_is_made_up_for_and_training_is_as_if_it_had_not_been(
    tmp_path: Path, settings: dict[str, Any], at: int
) -> None:
    """A supervisor was killed while its trainer evaluated: found by tests.whole_runs.kills."""
    from runner.engines.sft.inside.control import Control

    both = {"max_steps": 9, "eval_steps": 3, "save_steps": 3, "learning_rate": 0.5}
    plan = plan_of({**both, **settings})
    whole = run_folder(tmp_path / "whole")
    undisturbed = make_trainer(plan, whole)
    undisturbed.train()
    folder = run_folder(tmp_path / "run")
    control = Control(folder, 0)
    trainer = make_trainer(plan, folder, control=control)
    real = trainer.prediction_step

    def asked_meanwhile(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == at:
            control.checkpoint_requested = control.stop_requested = True
        return real(*args, **kwargs)

    trainer.prediction_step = asked_meanwhile
    trainer.train()
    assert saved(folder)[-1] == at and at not in metrics(folder, "eval_loss")
    again = make_trainer(plan, folder, resumed_step=at)
    again.train(resume_from_checkpoint=str(folder.checkpoints / f"checkpoint-{at}"))
    for name in ("loss", "eval_loss", "learning_rate", "tokens"):
        assert metrics(folder, name) == metrics(whole, name)
    assert again.stopped_early == undisturbed.stopped_early
    last = undisturbed.state.global_step
    assert adapter_of(folder, last) == adapter_of(whole, last)
    assert folder.best.read_text() == whole.best.read_text()


def test_an_evaluation_that_is_made_again_after_a_kill_has_one_line(tmp_path: Path) -> None:
    """The result's evaluation was logged, and the run killed before it had a result."""
    plan = plan_of({"max_steps": 4, "save_steps": 2})
    folder = run_folder(tmp_path / "run")
    make_trainer(plan, folder).train()
    for _ in range(2):
        trainer = make_trainer(plan, folder, resumed_step=4)
        trainer.train(resume_from_checkpoint=str(folder.checkpoints / "checkpoint-4"))
        assert not trainer.evaluated_last_step
        trainer.evaluate()
    lines = [line for line in durable.read_jsonl(folder.metrics) if "eval_loss" in line]
    assert [line["step"] for line in lines] == [4]
    assert trainer.records.eval_loss == lines[0]["eval_loss"]


def test_eight_bit_adamw_trains_or_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    plan = plan_of(
        {"max_steps": 2, "optim": "adamw_8bit", "adam_beta2": 0.95, "adam_epsilon": 1e-7}
    )
    folder = run_folder(tmp_path / "run")
    trainer = make_trainer(plan, folder)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert "bitsandbytes" in type(optimizer).__module__
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert optimizer.param_groups[0]["eps"] == 1e-7

    from runner.engines.sft.inside.train import arguments

    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RefusedError, match="bitsandbytes is not installed"):
        arguments.require_optimizer(plan)
    arguments.require_optimizer(plan_of())


@pytest.mark.parametrize("sharded", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_precision_can_be_had_of_a_cpu_by_every_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: str, precision: str
) -> None:
    """transformers takes bf16 for a GPU's where it isn't told of the CPU, as with DeepSpeed."""
    import torch
    from transformers import TrainingArguments

    from runner.engines.sft.inside.train.arguments import training_arguments

    # it would look for the other ranks, of which a test of settings has none
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu"))
    plan = plan_of()
    launch = plan.launch.model_copy(update={"deepspeed": sharded})
    plan = plan.model_copy(update={"launch": launch, "precision": precision})
    made = training_arguments(plan, run_folder(tmp_path / "run"), has_eval=False)
    assert (made.bf16, made.fp16) == (precision == "bf16", False)
