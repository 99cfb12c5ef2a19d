"""The best evaluation, early stopping, and what of both outlives a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.common.errors import RunnerError
from runner.engines.sft.inside.train import best
from runner.engines.sft.inside.train.best import EarlyStoppingState, Evaluation
from runner.runs import checkpoints

losses = st.lists(st.one_of(st.none(), st.floats(0, 20, allow_nan=False)), max_size=20)


def evaluations(values: list[float | None], phase: str = "") -> list[Evaluation]:
    return [Evaluation(10 * n, value, phase) for n, value in enumerate(values, start=1)]


@given(losses, st.floats(0, 2))
def test_the_best_is_the_lowest_and_the_count_is_since_the_last_fall(
    values: list[float | None], threshold: float
) -> None:
    made = evaluations(values)
    state = best.standing(made, "", threshold)
    numbers = [value for value in values if value is not None]
    if numbers:
        assert state.best == next(e for e in made if e.eval_loss == min(numbers))
    else:
        assert state.best is None
    lowest, since = math.inf, 0
    for value in values:
        since = 0 if value is not None and lowest - value > threshold else since + 1
        lowest = min(lowest, math.inf if value is None else value)
    assert state.without_improvement == since


@given(losses, st.integers(0, 20))
def test_a_resume_from_any_evaluation_stands_where_the_undisturbed_run_stood(
    values: list[float | None], at: int
) -> None:
    made = evaluations(values)
    assert best.standing(made[:at], "", 0.1) == best.standing(evaluations(values[:at]), "", 0.1)


def test_a_run_stops_after_so_many_evaluations_without_a_fall() -> None:
    said = [
        best.stop_sentence(best.standing(evaluations([3.0, 2.0, 2.5, 2.0][:n]), "", 0.0), 2, 0.0)
        for n in range(5)
    ]
    assert said[:4] == [None] * 4
    assert said[4] == (
        "stopped early: eval_loss did not fall in 2 evaluations in a row; the lowest is 2, "
        "at step 20"
    )
    assert best.stop_sentence(EarlyStoppingState(None, 1), 1, 0.5) == (
        "stopped early: eval_loss did not fall by more than 0.5 in 1 evaluation; none was a number"
    )
    assert best.stop_sentence(EarlyStoppingState(None, 99), None, 0.0) is None


def test_trainings_of_one_run_are_not_compared() -> None:
    both = evaluations([1.0], "projector") + evaluations([5.0, 4.0], "adapter")
    assert best.standing(both, "adapter", 0.0) == EarlyStoppingState(
        Evaluation(20, 4.0, "adapter"), 0
    )
    assert best.best_saved(both, "projector", {10, 20}) == Evaluation(10, 1.0, "projector")


def test_the_file_keeps_everything_and_says_the_best(tmp_path: Path) -> None:
    path, made = tmp_path / best.NAME, evaluations([2.0, None, 1.0, 1.5])
    assert best.read(path) == []
    best.write(path, made)
    assert best.read(path) == made
    record = json.loads(path.read_text())
    assert record["schema_version"] == 1
    assert record["best"] == {"step": 30, "eval_loss": 1.0, "phase": ""}
    best.write(path, [])
    assert best.read(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": 2, "evaluations": []}',
        '{"schema_version": 1, "evaluations": [{"step": "x", "eval_loss": 1, "phase": ""}]}',
        '{"schema_version": 1, "evaluations": [{"step": 1, "eval_loss": "low", "phase": ""}]}',
        '{"schema_version": 1, "evaluations": [{"step": 1}]}',
    ],
)
def test_a_damaged_file_is_not_taken_for_a_run_without_evaluations(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / best.NAME
    path.write_text(text)
    with pytest.raises(RunnerError, match=r"best\.json can't be read"):
        best.read(path)


def saved(folder: Path, step: int) -> Path:
    path = folder / checkpoints.name_of(step)
    path.mkdir()
    (path / "adapter_model.safetensors").write_text("weights")
    checkpoints.seal(path)
    return path


def test_the_best_checkpoint_is_the_best_that_is_saved_and_whole(tmp_path: Path) -> None:
    assert best.best_checkpoint(tmp_path) == (None, [])
    best.write(tmp_path / best.NAME, evaluations([3.0, 1.0, 2.0, 0.5]))
    assert best.best_checkpoint(tmp_path) == (None, [])
    for step in (10, 20, 30):
        saved(tmp_path, step)
    assert best.best_checkpoint(tmp_path) == (tmp_path / "checkpoint-20", [])
    assert best.best_checkpoint(tmp_path, "another") == (None, [])
    (tmp_path / "checkpoint-20" / "adapter_model.safetensors").write_text("weighty")
    assert best.best_checkpoint(tmp_path) == (
        tmp_path / "checkpoint-30",
        [
            "checkpoint-20, with eval_loss 1, is passed over: "
            "adapter_model.safetensors was changed since it was sealed"
        ],
    )
