"""Which models answer, in an evaluation or a chat: a run's own, and its base beside it.

Imports torch, transformers and peft when called, through runner.engines.sft.inside.model.weights
and .trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder

Active = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Subject:
    """A model that answers while `active()` is entered."""

    name: str  # model or base
    model: Any
    active: Active = nullcontext


def on_available_device(plan: SftPlan) -> SftPlan:
    """The plan on the device that there is: itself, or one on the CPU where no GPU is to be had."""
    import torch

    if plan.launch.device == "cpu" or torch.cuda.is_available():
        return plan
    launch = plan.launch.model_copy(update={"device": "cpu"})
    return plan.model_copy(update={"launch": launch})


def load_subjects(plan: SftPlan, run: RunFolder | None, *, with_base: bool) -> list[Subject]:
    """The run's model, and its base if asked for; or, without a run, the plan's model as it is.

    An adapter is switched off for the base, so that both share the weights, quantized ones too; a
    model trained whole needs its base loaded beside it.

    Args:
        plan: of the last training, on the device that there is (see `placed`).

    Raises RefusedError: weights that can't be had, or a run without a result.
    """
    from runner.engines.sft.inside.model.trained import load_base, load_trained
    from runner.engines.sft.inside.model.weights import load_model

    # as it was published: neither quantized for training nor in a full training's fp32
    plain = plan.model_copy(update={"method": "lora", "trains": ["adapter"]})
    if run is None:
        return [Subject("model", _ready(load_model(plain), plan), _mixed(plan, nullcontext))]
    model = _ready(load_trained(plan, run), plan)
    subjects = [Subject("model", model)]
    if with_base and hasattr(model, "disable_adapter"):
        subjects.append(Subject("base", model, model.disable_adapter))
    elif with_base:
        subjects.append(Subject("base", _ready(load_base(plain, run), plan)))
    return [replace(subject, active=_mixed(plan, subject.active)) for subject in subjects]


def _mixed(plan: SftPlan, active: Active) -> Active:
    """Autocast around a model with an image tower: its trained projector is kept in fp32."""
    if plan.vision is None or plan.precision == "fp32":
        return active

    @contextmanager
    def both() -> Iterator[None]:
        import torch

        from runner.engines.sft.inside.model.weights import precision_dtype

        with active(), torch.autocast(plan.launch.device, dtype=precision_dtype(plan.precision)):
            yield

    return both


def _ready(model: Any, plan: SftPlan) -> Any:
    if not getattr(model, "is_quantized", False):  # quantized weights were loaded in their place
        model = model.to(plan.launch.device)
    return model.eval()
