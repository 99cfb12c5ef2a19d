"""What a plan comes to: steps as the trainer counts them, checkpoints, disk, contradictions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.engines.sft.inside.survey import checkpoint_bytes, contradictions
from runner.engines.sft.inside.train.length import length_of
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.jobs.training import Stage


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SftPlan:
    folder = tmp_path_factory.mktemp("job")
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "job.yaml").write_text("model: a/b\ndata: {train: rows.jsonl, split: {eval: 0.1}}\n")
    loaded = load_job(str(folder / "job.yaml"))
    return make_plan(loaded, gather(loaded))


def trained(plan: SftPlan, **training: Any) -> SftPlan:
    return plan.model_copy(update={"training": plan.training.model_copy(update=training)})


@settings(max_examples=100)
@given(
    rows=st.integers(1, 5000),
    batch=st.integers(1, 16),
    accumulation=st.integers(1, 8),
    epochs=st.integers(1, 7),
)
def test_steps_are_those_of_the_trainers_own_arithmetic(
    plan: SftPlan, rows: int, batch: int, accumulation: int, epochs: int
) -> None:
    """As Trainer.set_initial_training_values: batches rounded up, then updates rounded up."""
    length = length_of(
        trained(
            plan,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=float(epochs),
        ),
        rows,
        0,
    )
    batches = -(-rows // batch)
    updates = max(batches // accumulation + int(batches % accumulation > 0), 1)
    assert length.steps_an_epoch == updates
    assert length.steps == updates * epochs
    assert length.passes == pytest.approx(epochs)


def test_checkpoints_are_counted_by_the_policy_of_each_stage(plan: SftPlan) -> None:
    stages = [
        Stage(max_steps=75, learning_rate=1e-4, save="never"),
        Stage(max_steps=50, learning_rate=1e-5, save="every_step"),
    ]
    length = length_of(trained(plan, stages=stages, max_steps=125), 15_000, 0)
    assert (length.steps, length.saves, length.kept) == (125, 50, 50)
    kept = length_of(trained(plan, stages=stages, max_steps=125, save_total_limit=3), 15_000, 0)
    assert (kept.saves, kept.kept) == (50, 4)  # three, and the one being written


def test_a_window_keeps_early_steps_unsaved(plan: SftPlan) -> None:
    length = length_of(trained(plan, max_steps=100, save_steps=10, save_from_step=50), 1000, 0)
    assert length.saves == 6  # 50, 60 ... 100


def test_an_adapters_checkpoint_is_its_weights_and_two_moments(plan: SftPlan) -> None:
    size = checkpoint_bytes(plan, 8_798_208, 494_000_000, 7_000_000)
    assert size == pytest.approx(8_798_208 * 12 + 7_000_000, rel=0.01)
    whole = plan.model_copy(update={"method": "full", "precision": "bf16"})
    assert checkpoint_bytes(whole, 494_000_000, 494_000_000, 0) == pytest.approx(
        494_000_000 * 10, rel=0.01
    )


def test_an_evaluation_that_never_comes_can_have_no_best(plan: SftPlan) -> None:
    training = {"eval_steps": 100, "save_steps": 100, "num_train_epochs": 1.0}
    best = trained(plan, **training, load_best_model_at_end=True)
    problems, _ = contradictions(best.training, length_of(best, 80, 8))
    assert [(p.field, p.value) for p in problems] == [("training.eval_steps", "100")]
    plain = trained(plan, **training)
    problems, warnings = contradictions(plain.training, length_of(plain, 80, 8))
    assert problems == []
    assert warnings == [
        "save_steps 100: of 20 steps only the last is saved",
        "eval_steps 100 never comes in 20 steps: one evaluation, at the end",
    ]


def test_many_passes_over_few_rows_are_told(plan: SftPlan) -> None:
    many = trained(plan, max_steps=200)
    _, warnings = contradictions(many.training, length_of(many, 20, 2))
    assert warnings == ["200 steps x 4 rows are 40 passes over the 20 training rows"]
    wide = trained(plan, gradient_accumulation_steps=64)
    _, warnings = contradictions(wide.training, length_of(wide, 20, 2))
    assert warnings[0].startswith("one step takes 256 rows, there are 20")


def test_a_training_that_is_all_warm_up_is_refused_with_its_arithmetic(plan: SftPlan) -> None:
    """Few rows, or max_steps 1: the one step would be made with a learning rate of 0."""
    few = trained(plan, warmup_ratio=0.03, gradient_accumulation_steps=2)
    problems, _ = contradictions(few.training, length_of(few, 8, 2))
    (problem,) = problems
    assert problem.field == "training.warmup_ratio" and problem.value == "0.03"
    assert problem.where == "8 rows / 8 a step = 1 steps a pass, x 1 = 1"
    assert "the learning rate is 0 in every step: 1 optimizer step" in problem.problem
    assert "warmup_ratio 0.03 x 1, rounded up" in problem.problem
    assert "--set training.warmup_ratio=0" in (problem.expected or "")
    one = trained(plan, warmup_ratio=0.1, max_steps=1)
    problems, _ = contradictions(one.training, length_of(one, 800, 2))
    assert problems[0].where == "1 steps, as training.max_steps says"
    stages = [Stage(max_steps=9, learning_rate=1e-4, warmup_steps=3)]
    cut = trained(plan, stages=stages, max_steps=1)
    problems, _ = contradictions(cut.training, length_of(cut, 800, 2))
    assert problems[0].field == "training.stages.0.warmup_steps"
    for fine in (
        trained(plan, warmup_ratio=0.03, num_train_epochs=2.0),
        trained(plan, max_steps=1),
    ):
        assert contradictions(fine.training, length_of(fine, 4, 2))[0] == []


def test_a_warm_up_that_never_reaches_its_peak_is_told(plan: SftPlan) -> None:
    slow = trained(plan, max_steps=3, warmup_ratio=0.99)
    problems, warnings = contradictions(slow.training, length_of(slow, 80, 8))
    assert problems == []
    assert "never reaches its peak: the warm-up takes 3" in warnings[0]


def test_a_hundred_million_steps_are_surveyed_at_once(plan: SftPlan) -> None:
    many = trained(plan, max_steps=99_999_999, save_steps=3, save_total_limit=2)
    length = length_of(many, 1000, 10)
    assert (length.steps, length.saves, length.kept) == (99_999_999, 33_333_333, 3)
