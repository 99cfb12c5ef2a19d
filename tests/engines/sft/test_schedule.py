"""Learning rates and saves of stages: exact at each boundary, and transformers' own formulas."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engines.sft.inside.train.schedule import (
    count_saves,
    has_best_candidate,
    kept_at_once,
    learning_rate_at,
    saves_at,
    warm_up_alone,
    warm_up_steps,
)
from runner.jobs.training import TrainingSettings

TWO = TrainingSettings.model_validate(
    {
        "stages": [
            {"max_steps": 75, "learning_rate": 1e-4, "save": "never"},
            {"max_steps": 50, "learning_rate": 1e-5, "save": "every_step"},
        ]
    }
)

stages = st.lists(
    st.builds(
        lambda steps, warmup, rate, kind, save: {
            "max_steps": steps,
            "learning_rate": rate,
            "lr_scheduler_type": kind,
            "warmup_steps": min(warmup, steps - 1),
            "save": save,
        },
        st.integers(1, 20),
        st.integers(0, 8),
        st.floats(1e-7, 1e-1),
        st.sampled_from(["constant", "linear", "cosine"]),
        st.sampled_from(["never", "end", "every_step", 1, 2, 3, 7]),
    ),
    min_size=1,
    max_size=4,
)


def saved_steps(training: TrainingSettings, total: int) -> list[int]:
    """Step by step what is counted at once elsewhere."""
    return [step for step in range(1, total + 1) if saves_at(training, step, total)]


def best_candidates(training: TrainingSettings, total: int) -> list[int]:
    every = training.eval_steps
    if every is None:
        return []
    return [s for s in saved_steps(training, total) if s % every == 0 or s == total]


def settings(**values: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(values)


def test_75_steps_at_one_rate_without_saves_then_50_at_another_with_each_saved() -> None:
    rates = [learning_rate_at(TWO, step, 125) for step in range(125)]
    assert rates == [1e-4] * 75 + [1e-5] * 50
    assert learning_rate_at(TWO, 125, 125) == 1e-5  # what a scheduler asks for after the last step
    assert saved_steps(TWO, 125) == list(range(76, 126))
    assert kept_at_once(TWO, 125) == 50


@given(stages, st.data())
def test_each_stage_has_its_own_warm_up_peak_and_decay(
    made: list[dict[str, Any]], data: st.DataObject
) -> None:
    training = settings(stages=made)
    whole = sum(stage["max_steps"] for stage in made)
    total = data.draw(st.integers(1, whole), "total")  # --max-steps may end it inside a stage
    rates = [learning_rate_at(training, step, total) for step in range(total)]
    before = 0
    for stage in made:
        own = rates[before : before + stage["max_steps"]]
        before += stage["max_steps"]
        peak, warmup = stage["learning_rate"], stage["warmup_steps"]
        assert all(0 <= rate <= peak for rate in own)
        assert own[:warmup] == sorted(own[:warmup])
        if warmup and own:
            assert own[0] == 0
        rest = own[warmup:]
        if rest:
            assert rest[0] == peak
        if stage["lr_scheduler_type"] == "constant":
            assert set(rest) <= {peak}
        else:
            assert all(later < earlier for earlier, later in itertools.pairwise(rest))


@given(stages, st.data())
def test_saves_follow_each_stage_within_the_training(
    made: list[dict[str, Any]], data: st.DataObject
) -> None:
    total = data.draw(st.integers(1, sum(stage["max_steps"] for stage in made)), "total")
    first = data.draw(st.integers(1, total), "save_from_step")
    saved = saved_steps(settings(stages=made, save_from_step=first), total)
    assert all(step >= first for step in saved)
    before = 0
    for stage in made:
        end = min(total, before + stage["max_steps"])
        own = [step - before for step in saved if before < step <= end]
        possible = [step - before for step in range(max(before + 1, first), end + 1)]
        ends_here = total <= before + stage["max_steps"]
        if stage["save"] == "never":
            assert own == []
        elif stage["save"] == "every_step":
            assert own == possible
        elif stage["save"] == "end":
            assert own == [step for step in possible if step == end - before]
        else:
            assert own == [
                step
                for step in possible
                if step % stage["save"] == 0 or (ends_here and step == end - before)
            ]
        before += stage["max_steps"]
        if before >= total:
            break


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_save_steps_saves_each_multiple_and_the_last(
    total: int, every: int, first: int, best: bool
) -> None:
    training = settings(save_steps=every, save_from_step=first, save_total_limit=3)
    wanted = [s for s in range(1, total + 1) if (s % every == 0 or s == total) and s >= first]
    assert saved_steps(training, total) == wanted
    assert kept_at_once(training, total) == min(len(wanted), 4)
    assert saved_steps(settings(), total) == []


def test_a_smoke_saves_its_last_step_whatever_its_stages_say() -> None:
    made = settings(stages=[{"max_steps": 5, "learning_rate": 1e-4}], save_steps=5)
    assert saved_steps(made, 5) == [5]


def test_only_what_is_evaluated_and_saved_can_be_the_best() -> None:
    made = {"stages": [{"max_steps": 7, "learning_rate": 1e-4, "save": 2}]}
    assert best_candidates(settings(**made), 7) == []
    assert best_candidates(settings(**made, eval_steps=3), 7) == [6, 7]
    assert best_candidates(settings(**made, eval_steps=5), 6) == [6]
    assert best_candidates(settings(save_steps=4, eval_steps=2), 10) == [4, 8, 10]


def test_what_is_no_step_is_refused() -> None:
    for step in (-1, 126):
        with pytest.raises(ValueError, match="is not one of 125"):
            learning_rate_at(TWO, step, 125)
    for step in (0, 126):
        with pytest.raises(ValueError, match="is not one of 125"):
            saves_at(TWO, step, 125)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.33])
def test_without_stages_it_is_what_transformers_does(kind: str, ratio: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    total, peak = 40, 3e-4
    training = settings(learning_rate=peak, lr_scheduler_type=kind, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    warmup = transformers.TrainingArguments(
        output_dir="x", warmup_steps=ratio, use_cpu=True
    ).get_warmup_steps(total)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = transformers.get_scheduler(name, optimizer, warmup, total)
    for step in range(total):
        assert theirs.get_last_lr()[0] == pytest.approx(
            learning_rate_at(training, step, total), rel=1e-12, abs=0
        )
        optimizer.step()
        theirs.step()


@given(stages, st.data())
def test_saves_are_counted_as_step_by_step(made: list[dict[str, Any]], data: st.DataObject) -> None:
    """With stages and save_steps together too, as a smoke has them."""
    with_stages = data.draw(st.booleans(), "stages")
    whole = sum(stage["max_steps"] for stage in made) if with_stages else 60
    total = data.draw(st.integers(1, whole), "total")
    training = settings(
        stages=made if with_stages else [],
        save_steps=data.draw(st.none() | st.integers(1, 30), "save_steps"),
        save_from_step=data.draw(st.integers(1, total), "save_from_step"),
        eval_steps=data.draw(st.none() | st.integers(1, 30), "eval_steps"),
    )
    assert count_saves(training, total) == len(saved_steps(training, total))
    assert has_best_candidate(training, total) == bool(best_candidates(training, total))


def test_a_billion_steps_are_counted_at_once() -> None:
    total = 999_999_999
    training = settings(max_steps=total, save_steps=7, eval_steps=11, save_total_limit=3)
    began = time.process_time()
    assert count_saves(training, total) == total // 7 + 1
    assert kept_at_once(training, total) == 4
    assert has_best_candidate(training, total)
    assert time.process_time() - began < 5  # one by one they would take minutes


def test_a_training_that_only_warms_up_learns_nothing() -> None:
    """Exactly where every step's rate is 0, by transformers' own formula."""
    for ratio in (0.0, 0.03, 0.5, 0.99):
        for total in range(1, 8):
            training = settings(warmup_ratio=ratio)
            rates = [learning_rate_at(training, step, total) for step in range(total)]
            warmup, told = warm_up_steps(training, total)
            assert (warm_up_alone(total, warmup, told) is not None) == (max(rates) == 0)
    stage = {"max_steps": 5, "learning_rate": 1e-4, "warmup_steps": 3}
    staged = settings(stages=[stage])
    assert warm_up_alone(1, *warm_up_steps(staged, 1)) is not None  # by --max-steps 1
    assert warm_up_alone(2, *warm_up_steps(staged, 2)) is None
    why = warm_up_alone(1, *warm_up_steps(settings(warmup_ratio=0.03), 1)) or ""
    assert "1 optimizer step, and the warm-up takes 1 (warmup_ratio 0.03 x 1, rounded up)" in why
