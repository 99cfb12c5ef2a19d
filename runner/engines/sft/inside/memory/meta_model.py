"""A plan's model as its run trains it, without weights: made on meta, then of fake tensors.

Imports torch, transformers and peft. The model class, the adapter, what is frozen and in which
number format are those that the engine makes, by the engine's own functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.engines.sft.inside.memory.quantized_layers import store_linears
from runner.engines.sft.inside.memory.tracker import Tracker
from runner.engines.sft.inside.model.adapter import trainable_setup
from runner.engines.sft.inside.model.configs import skeleton_config
from runner.engines.sft.inside.model.saving import decoder_layers
from runner.engines.sft.inside.model.vision.compose import freeze_tower
from runner.engines.sft.inside.model.weights import precision_dtype
from runner.engines.sft.plan import SftPlan


@dataclass(frozen=True)
class Skeleton:
    """A model of fake tensors, ready for a step."""

    model: Any
    config: Any
    notes: list[str]
    """What was taken in place of something that is not here."""
    weight_bytes: int
    """Of the whole base as it is loaded, unsharded; bytes."""
    trainable: int
    """Weights that are trained; a count."""
    total: int
    largest_layer: int
    """Bytes of the module whose own weights are most, an embedding as a rule."""
    layers: int
    """Layers that can recompute their activations; a count."""


def meta_model(plan: SftPlan, layers: int | None = None) -> tuple[Any, Any, list[str]]:
    """Base model with its adapter on the meta device, its config, and notes.

    `layers`: decoder layers in place of the model's own number.

    Raises RefusedError where the config can't be had or the adapter does not fit.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    config, notes = skeleton_config(plan)
    if layers is not None:
        _shorten(config.get_text_config(), layers)
    whole = plan.method == "full" and plan.launch.deepspeed == "none"
    dtype = precision_dtype("fp32" if whole else plan.precision)
    with torch.device("meta"):
        if plan.vision is not None:
            model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
            freeze_tower(model)
        else:
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=plan.trust_remote_code
            )
        setup = trainable_setup(model, plan)
        if setup is not None:
            sharded = plan.launch.deepspeed == "zero3"
            model = get_peft_model(
                model, setup, low_cpu_mem_usage=True, autocast_adapter_dtype=not sharded
            )
        trained = _trained_dtype(plan)
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype != trained:
                parameter.data = parameter.data.to(trained)
    return model, config, notes


def _shorten(text: Any, layers: int) -> None:
    """Give a language model's config so many layers; lists of a kind for each are cut."""
    for name, value in list(vars(text).items()):
        if isinstance(value, (list, tuple)) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers


def _trained_dtype(plan: SftPlan) -> torch.dtype:
    """What is trained is held in fp32 (engine.adapter.keep_full_precision), under DeepSpeed in the
    precision that it computes in, beside fp32 copies."""
    if plan.launch.deepspeed != "none":
        return precision_dtype(plan.precision)
    if plan.method in ("lora", "qlora") and plan.lora.dtype == "bf16":
        return torch.bfloat16
    return torch.float32


def make_skeleton(plan: SftPlan, mode: Any, tracker: Tracker, depth: int | None = None) -> Skeleton:
    """The plan's model of fake CPU tensors under FakeTensorMode `mode`.

    Tied weights stay tied, and a quantized base is stored as bitsandbytes stores it.
    """
    model, config, notes = meta_model(plan, depth)
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    total = sum(one.numel() for one in model.parameters())
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    if plan.method == "qlora":
        store_linears(model, plan.quantization, tracker.making)
        kept = [*model.parameters(), *model.buffers()]
        weights = sum(one.numel() * one.element_size() for one in kept)
    largest, layers = largest_module(model), len(decoder_layers(model))
    _swap(model, mode)
    return Skeleton(model, config, notes, weights, trainable, total, largest, layers)


def largest_module(model: nn.Module) -> int:
    """Bytes of the weights that the one module with most of its own has."""
    sizes: list[int] = [
        sum(one.numel() * one.element_size() for one in module.parameters(recurse=False))
        for module in model.modules()
    ]
    return max(sizes)


def _swap(model: nn.Module, mode: Any) -> None:
    """Replace every parameter and buffer by a fake tensor, one for each, however often it is tied.

    In place of model.to(), which fails on meta tensors.
    """
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
                )
            made[id(tensor)] = (
                nn.Parameter(empty, requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else empty
            )
        return made[id(tensor)]

    keep = []  # ids are of use only while their objects live
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            for name, tensor in list(slots.items()):
                if tensor is not None:
                    keep.append(tensor)
                    slots[name] = fake(tensor)
