"""Refuse settings that would change nothing, by name and reason.

Pure; imports the jobs' parts. A setting that nothing reads is a mistake that nobody would notice.
Settings that another choice on the command line activates are not refused: blocks of another method
(--method), container.* (--on), smoke.*, data.hub.* beside `--set data.train=FILE`, and both kinds
of budget beside launch.device auto. tests/jobs/test_settings_count.py changes every field of
every engine.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.jobs.base import BudgetSettings, LaunchSettings
from runner.jobs.data import DataSettings
from runner.jobs.method import QuantizationSettings
from runner.jobs.training import EvaluationSettings, TrainingSettings

Found = Iterator[tuple[str, str]]
"""Dotted field, seen from the block that is looked at, and the reason: "has no effect: ..."."""


def without_device(launch: LaunchSettings, budget: BudgetSettings) -> Found:
    """What the device that a job names leaves no meaning to; `auto` may be either."""
    if launch.device == "cpu":
        if launch.share:
            yield "launch.share", "has no effect: launch.device is cpu, and it is of GPUs"
        if budget.oom_snapshot:
            yield "budget.oom_snapshot", "has no effect: launch.device is cpu, and it is of GPUs"
    if launch.device == "cuda" and budget.host_memory and not budget.gpu_memory:
        yield (
            "budget.host_memory",
            "can't be enforced where launch.device is cuda; give budget.gpu_memory",
        )


def without_evaluation_task(evaluation: EvaluationSettings) -> Found:
    """What the task that is measured leaves no meaning to."""
    if evaluation.answer_pattern is not None and evaluation.task != "multiple_choice":
        yield (
            "answer_pattern",
            f"has no effect: evaluation.task is {evaluation.task}; it is of multiple_choice alone",
        )
    if evaluation.task == "loss":
        for name in ("max_new_tokens", "thinking"):
            if getattr(evaluation, name) != EvaluationSettings.model_fields[name].default:
                yield name, "has no effect: evaluation.task is loss, which asks for no answers"


def without_bits(quantization: QuantizationSettings) -> Found:
    """What 8 bits leave no meaning to."""
    if quantization.bits == 8:
        for name in ("quant_type", "double_quant"):
            default = QuantizationSettings.model_fields[name].default
            if getattr(quantization, name) != default:
                yield name, "has no effect: quantization.bits is 8, and it is of 4 bits"


def without_events(training: TrainingSettings) -> Found:
    """What a training that never saves, or never ends early, leaves no meaning to."""
    if training.early_stopping_threshold and training.early_stopping_patience is None:
        yield "early_stopping_threshold", "has no effect without training.early_stopping_patience"
    if training.save_from_step > 1 and training.save_steps is None and not training.stages:
        yield "save_from_step", "has no effect without training.save_steps: nothing is saved"


def without_layout(data: DataSettings, *, sees: bool) -> Found:
    """What the layout that a job names leaves no meaning to; `auto` may find any.

    `sees`: whether the model takes images.
    """
    default = DataSettings.model_fields["image_background"].default
    if not sees and data.image_background != default:
        yield "image_background", "has no effect without vision.model: no image is read"
    if data.format not in ("auto", "text_label"):
        default = DataSettings.model_fields["prompt"].default
        for name, said in (("prompt", data.prompt != default), ("labels", bool(data.labels))):
            if said:
                yield name, f"has no effect: data.format is {data.format}; it is of text_label"
    if data.format not in ("auto", "data_juicer") and data.questions is not None:
        yield "questions", f"has no effect: data.format is {data.format}; it is of data_juicer"
