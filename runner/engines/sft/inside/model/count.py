"""Exact parameter counts: before the start, without weights, and of the model that trains.

Imports torch, transformers and peft when called.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from runner.engines.sft.inside.model.adapter import trainable_setup
from runner.engines.sft.inside.model.tokenizer import location, unreachable
from runner.engines.sft.plan import SftPlan


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model with its adapter; counts of weights, however they are stored."""

    trainable: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.trainable / self.total


def count_parameters(plan: SftPlan) -> ParameterCount:
    """Exact counts without weights: model and adapter on the meta device, from the config alone.

    A quantized base counts as the unquantized one: its weights are as many. Raises RefusedError
    where the config can't be had or the adapter does not fit.
    """
    import torch
    from peft import get_peft_model

    model = model_on_meta(plan)
    with torch.device("meta"):
        config = trainable_setup(model, plan)
        if config is not None:
            model = get_peft_model(model, config, low_cpu_mem_usage=True)
    return counted(model)


def model_on_meta(plan: SftPlan) -> Any:
    """The plan's base model without weights. Raises RefusedError where its config can't be had."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if plan.vision is not None:
        from runner.engines.sft.inside.model.vision.compose import vision_model_on_meta

        return vision_model_on_meta(plan)
    place, options = location(plan)
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise unreachable(plan, error) from None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=plan.trust_remote_code)


def counted(model: Any) -> ParameterCount:
    """Counts of a model that is there, sharded (ZeRO-3) or quantized ones whole.

    The original that PEFT keeps beside a module it trains in full (modules_to_save) is no part of
    the model any more and counts no second time.
    """
    trainable = total = 0
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        size = _weights(parameter)
        total += size
        trainable += size if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def _weights(parameter: Any) -> int:
    """Weights that a parameter stands for: bitsandbytes packs 4-bit ones in bytes."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return math.prod(state.shape)
    stored = int(getattr(parameter, "ds_numel", 0)) or parameter.numel()
    if type(parameter).__name__ == "Params4bit":  # sharded, so without its state
        return stored * 2 * parameter.element_size()
    return stored
