"""The learning rate of a line of metrics.jsonl is that of the line's own step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.engines.sft.inside.train.metrics_callback import MetricsCallback
from runner.engines.sft.inside.train.schedule import learning_rate_at
from tests.engines.sft.tiny import plan_of, run_folder


@pytest.mark.parametrize("within_backward", [False, True])
def test_a_schedule_that_steps_within_the_backward_pass_is_not_a_step_ahead(
    tmp_path: Path, within_backward: bool
) -> None:
    """DeepSpeed's engine steps optimizer and schedule before transformers calls its step's."""
    plan = plan_of({"max_steps": 4, "warmup_ratio": 0.5, "learning_rate": 1e-3})
    folder = run_folder(tmp_path / "run")
    told = MetricsCallback(plan, folder, None)
    arguments: Any = SimpleNamespace()
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=0)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
    control: Any = SimpleNamespace()

    def schedule(step: int) -> None:
        optimizer.param_groups[0]["lr"] = learning_rate_at(plan.training, step, 4)

    told.on_train_begin(arguments, state, control)
    for step in range(4):
        told.on_step_begin(arguments, state, control, optimizer=optimizer)
        if within_backward:
            schedule(step + 1)
        told.on_pre_optimizer_step(arguments, state, control, optimizer=optimizer)
        if not within_backward:
            schedule(step + 1)
        state.global_step = step + 1
        told.on_log(arguments, state, control, logs={"loss": 1.0})
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == [
        learning_rate_at(plan.training, step, 4) for step in range(4)
    ]
    assert lines[0]["learning_rate"] == 0.0  # a warm-up's first step
