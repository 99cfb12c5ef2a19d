"""Which learning rate a step is made with, and after which steps a checkpoint is saved. Pure.

Imports runner.jobs.training only, so that a plan's checkpoints can be counted without torch.
Steps are those of one training: what a run with several in a row trained before does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from runner.jobs.training import Stage, TrainingSettings


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


def count_saves(training: TrainingSettings, total: int) -> int:
    """How many of `total` steps save a checkpoint by the settings; its time is not theirs."""
    return sum(_size_of_union(each) for each in _saves(training, total))


def has_best_candidate(training: TrainingSettings, total: int) -> bool:
    """Whether a step can be the best model: evaluated (each eval_steps, and the last) and saved."""
    every = training.eval_steps
    if every is None:
        return False
    evaluated = (range(every, total + 1, every), range(total, total + 1))
    return any(
        _common(saved, looked)
        for each in _saves(training, total)
        for saved in each
        for looked in evaluated
    )


def kept_at_once(training: TrainingSettings, total: int) -> int:
    """The most checkpoints that lie on disk at one time, the one being written included."""
    saved, limit = count_saves(training, total), training.save_total_limit
    if limit is None:
        return saved
    best = 1 if training.load_best_model_at_end else 0
    return min(saved, limit + best + 1)


def warm_up_alone(steps: int, warmup: int, told: str) -> str | None:
    """Why a training of `steps` learns nothing for its warm-up, with the arithmetic; else None.

    A rate that rises from 0 over `warmup` steps makes step s (from 0) with s / warmup of its peak:
    a training of one step that warms up has a learning rate of 0 in all of its steps.

    Args:
        steps: optimizer steps of the training; a count.
        warmup: of these, the steps in which the rate rises; a count.
        told: where the figure comes from, such as "warmup_ratio 0.03 x 1 step, rounded up".
    """
    if steps > 1 or warmup < 1:
        return None
    return (
        f"the learning rate is 0 in every step: {steps} optimizer step, and the warm-up takes "
        f"{warmup} ({told}); it rises from 0, so the first step is made with 0"
    )


def warm_up_steps(training: TrainingSettings, total: int) -> tuple[int, str]:
    """Steps of the first warm-up of a training of `total` steps, and where the figure is from."""
    if training.stages:
        steps = training.stages[0].warmup_steps
        return steps, f"stages.0.warmup_steps {steps}"
    steps = math.ceil(total * training.warmup_ratio)
    return steps, f"warmup_ratio {training.warmup_ratio:g} x {total:,}, rounded up"


def _saves(training: TrainingSettings, total: int) -> Iterator[list[range]]:
    """What `saves_at` says, as ranges of steps: a list for each stretch; stretches share none."""
    first = training.save_from_step
    every = training.save_steps
    before = 0
    stretches: list[Stage | None] = [*training.stages] or [None]
    for number, stage in enumerate(stretches, start=1):
        end = total if stage is None or number == len(stretches) else before + stage.max_steps
        stop = min(end, total) + 1
        found = []
        if every is not None:
            found.append(range(every, total + 1, every))
        if every is not None or (stage is not None and stage.save != "never"):
            found.append(range(total, total + 1))
        if stage is not None and stage.save == "every_step":
            found.append(range(1, total + 1))
        elif stage is not None and stage.save == "end":
            found.append(range(before + stage.max_steps, before + stage.max_steps + 1))
        elif stage is not None and isinstance(stage.save, int):
            found.append(range(before + stage.save, total + 1, stage.save))
        inside = range(max(before + 1, first), stop)
        yield [_common(each, inside) for each in found]
        before = stop - 1
        if before >= total:
            return


def _size_of_union(ranges: list[range]) -> int:
    """Numbers that are in any of a few ranges, by inclusion and exclusion."""
    size = 0
    for chosen in range(1, 1 << len(ranges)):
        members = [each for at, each in enumerate(ranges) if chosen >> at & 1]
        shared = members[0]
        for each in members[1:]:
            shared = _common(shared, each)
        size += len(shared) if len(members) % 2 else -len(shared)
    return size


def _common(one: range, other: range) -> range:
    """The numbers of two ascending ranges, a range too (the Chinese remainder theorem)."""
    if not one or not other:
        return range(0)
    shared = math.gcd(one.step, other.step)
    gap = other.start - one.start
    if gap % shared:
        return range(0)
    step = one.step // shared * other.step
    modulus = other.step // shared
    times = gap // shared * pow(one.step // shared, -1, modulus) % modulus if modulus > 1 else 0
    start = one.start + times * one.step
    least = max(one.start, other.start)
    start += max(0, -(-(least - start) // step)) * step
    return range(start, min(one.stop, other.stop), step)


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
