"""How long a training is: steps, passes and checkpoints, as transformers' Trainer counts. Pure.

Imports the save rules of train/schedule; no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from runner.engines.sft.inside.train.schedule import count_saves, kept_at_once
from runner.engines.sft.plan import SftPlan
from runner.jobs.training import TrainingSettings


@dataclass(frozen=True)
class Length:
    """How long one training is, in optimizer steps and passes over its rows."""

    phase: str
    rows: int
    eval_rows: int
    global_batch: int
    steps_an_epoch: int
    steps: int
    passes: float
    saves: int
    """Checkpoints written, kept or not."""
    kept: int
    """Checkpoints that lie there at once, the one being written included."""

    def arithmetic(self, training: TrainingSettings) -> str:
        """How the steps come about, for an error."""
        if training.max_steps is not None:
            return f"{self.steps:,} steps, as training.max_steps says"
        return (
            f"{self.rows:,} rows / {self.global_batch:,} a step = {self.steps_an_epoch:,} steps a "
            f"pass, x {training.num_train_epochs:g} = {self.steps:,}"
        )


def length_of(plan: SftPlan, rows: int, eval_rows: int) -> Length:
    """Steps and checkpoints of one training over `rows` rows, as transformers' Trainer counts."""
    training, processes = plan.training, plan.launch.num_processes
    forward = training.per_device_train_batch_size * processes
    accumulated = training.gradient_accumulation_steps
    an_epoch = max(1, math.ceil(math.ceil(rows / forward) / accumulated))
    steps = (
        training.max_steps
        if training.max_steps is not None
        else math.ceil(training.num_train_epochs * an_epoch)
    )
    return Length(
        phase=plan.phase,
        rows=rows,
        eval_rows=eval_rows,
        global_batch=forward * accumulated,
        steps_an_epoch=an_epoch,
        steps=steps,
        passes=steps / an_epoch,
        saves=count_saves(training, steps),
        kept=kept_at_once(training, steps),
    )
