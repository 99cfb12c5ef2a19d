"""Time statistics: each second belongs to the step, the evaluation or the save it was spent in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engines.sft.inside.train.throughput import Throughput, percentile


def test_a_second_is_counted_where_it_was_spent_and_once() -> None:
    pace = Throughput()
    pace.evaluated(5.0)  # before training: nothing
    pace.start(10.0)
    pace.step(12.0)
    pace.step(13.0)
    pace.evaluated(17.0)
    pace.saved(17.5)
    pace.step(18.5)
    pace.count(80)
    pace.stop()
    pace.evaluated(99.0)  # the result's
    assert pace.statistics() == {
        "steps": 3,
        "seconds_per_step_median": 1.0,
        "seconds_per_step_p95": 2.0,
        "tokens_per_second": 20.0,
        "training_seconds": 4.0,
        "evaluation_seconds": 4.0,
        "saving_seconds": 0.5,
    }


def test_a_training_without_steps_has_no_figures() -> None:
    empty = Throughput().statistics()
    assert empty["seconds_per_step_median"] is None
    assert empty["tokens_per_second"] is None


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_one_of_the_values_and_splits_them(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) <= share * len(values)


def test_the_95th_of_a_hundred() -> None:
    assert percentile([float(n) for n in range(1, 101)], 0.95) == pytest.approx(95)
    assert percentile([], 0.95) is None
