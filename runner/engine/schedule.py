"""Which learning rate a step is made with, and after which steps a checkpoint is saved. Pure.

Imports runner.job_training only, so that a plan's checkpoints can be counted without torch.
Steps are those of one training: what a run with several in a row trained before does not count.
"""

from __future__ import annotations

import math

from runner.job_training import Stage, TrainingSettings


def learning_rate_at(training: TrainingSettings, step: int, total: int) -> float:
    """The learning rate that optimizer step `step` (from 0) of `total` is made with.

    Within a stage, and in a training without stages, the formulas are those of transformers'
    get_constant/linear/cosine_schedule_with_warmup over that stage's whole length, also where
    the training ends inside it. So the first step of a warm-up has 0. Where nothing decays
    (constant, after the warm-up) the value is the setting itself, to the last bit.

    Raises:
        ValueError: there is no such step.
    """
    if not 0 <= step <= total:  # step == total: what a scheduler asks for after the last one
        raise ValueError(f"step {step} is not one of {total}")
    if training.stages:
        stage, before = _stage_of(training.stages, step)
        local = min(step - before, stage.max_steps)
        factor = _factor(stage.lr_scheduler_type, local, stage.max_steps, stage.warmup_steps)
        return stage.learning_rate * factor
    warmup = math.ceil(total * training.warmup_ratio)
    return training.learning_rate * _factor(training.lr_scheduler_type, step, total, warmup)


def saves_at(training: TrainingSettings, step: int, total: int) -> bool:
    """Whether a checkpoint is due after `step` (from 1) optimizer steps, the last being `total`.

    save_steps saves each so many steps and after the last one. A stage saves never, after each
    step, after each so many of its own steps, or at its end; the training's last step ends the
    stage it lies in, so all but never save it. Nothing is saved before save_from_step.
    """
    if not 1 <= step <= total:
        raise ValueError(f"step {step} is not one of {total}")
    if step < training.save_from_step:
        return False
    every = training.save_steps
    if every is not None and (step % every == 0 or step == total):
        return True
    if not training.stages:
        return False
    stage, before = _stage_of(training.stages, step - 1)
    if stage.save == "never":
        return False
    if stage.save == "every_step" or step == total:
        return True
    if stage.save == "end":
        return step == before + stage.max_steps
    return (step - before) % stage.save == 0


def saved_steps(training: TrainingSettings, total: int) -> list[int]:
    """Every step after which a training of `total` steps saves a checkpoint by its settings."""
    return [step for step in range(1, total + 1) if saves_at(training, step, total)]


def best_candidates(training: TrainingSettings, total: int) -> list[int]:
    """The steps that can be the best model: evaluated (each eval_steps, and the last) and saved."""
    every = training.eval_steps
    if every is None:
        return []
    saved = saved_steps(training, total)
    return [step for step in saved if step % every == 0 or step == total]


def kept_at_once(training: TrainingSettings, total: int) -> int:
    """The most checkpoints that lie on disk at one time, the one being written included."""
    saved, limit = len(saved_steps(training, total)), training.save_total_limit
    if limit is None:
        return saved
    best = 1 if training.load_best_model_at_end else 0
    return min(saved, limit + best + 1)


def _stage_of(stages: list[Stage], step: int) -> tuple[Stage, int]:
    """The stage of optimizer step `step` (from 0), and the number of steps before that stage."""
    before = 0
    for stage in stages[:-1]:
        if step < before + stage.max_steps:
            return stage, before
        before += stage.max_steps
    return stages[-1], before


def _factor(kind: str, step: int, length: int, warmup: int) -> float:
    """Share of the peak learning rate at `step` (from 0) of `length`, in 0 to 1."""
    if step < warmup:
        return step / warmup
    if kind == "constant":
        return 1.0
    left = max(1, length - warmup)
    if kind == "linear":
        return max(0.0, (length - step) / left)
    progress = (step - warmup) / left
    # transformers has 0.5 cycles x 2.0; the products are the same to the last bit
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
