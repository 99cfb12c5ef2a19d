"""Linear layers whose weights are stored in 4 or 8 bits, as bitsandbytes' are, for a traced step.

Imports torch. What is modelled is what lives when: the packed weight and its scales always; a whole
weight in the computing precision while a layer multiplies, forward and backward (bitsandbytes 0.50,
autograd/_functions.py: MatMul4Bit, MatMul8bitLt); with 8 bits the input rounded to int8, and the
input kept for the backward pass. Values are never computed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from runner.jobs.method import QuantizationSettings

BLOCK = 64
"""Weights that share a scale; BitsAndBytesConfig's default."""
SCALES_BLOCK = 256
"""Scales that share a scale with double quantization."""
DEQUANTISED = "dequantisation buffer"


def stored_shapes(weights: int, rows: int, settings: QuantizationSettings) -> dict[Any, int]:
    """dtype -> elements of what a layer of so many weights is stored as."""
    if settings.bits == 8:
        return {torch.int8: weights, torch.float32: rows}  # a scale for each row
    blocks = -(-weights // BLOCK)
    if not settings.double_quant:
        return {torch.uint8: -(-weights // 2), torch.float32: blocks}
    return {torch.uint8: -(-weights // 2) + blocks, torch.float32: -(-blocks // SCALES_BLOCK) + 257}


class StoredLinear(nn.Module):
    """A frozen linear layer of [out, in] weights that lie packed."""

    def __init__(
        self,
        layer: nn.Linear,
        settings: QuantizationSettings,
        making: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        shapes = stored_shapes(layer.weight.numel(), layer.out_features, settings)
        for number, (dtype, elements) in enumerate(shapes.items()):
            held = torch.empty(elements, dtype=dtype, device=layer.weight.device)
            self.register_buffer(f"stored_{number}", held)
        self.bias = layer.bias
        self.dtype = layer.weight.dtype
        self.bits = settings.bits
        self.making = making

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out = _Multiply.apply(inputs, self)
        if self.bits == 4:
            out = out.clone()  # PEFT does, "defensively" (peft/tuners/lora/bnb.py)
        return out if self.bias is None else out + self.bias


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: StoredLinear) -> torch.Tensor:
        inputs = inputs.to(layer.dtype)
        ctx.layer = layer
        if layer.bits == 8:
            ctx.kept = inputs
            rounded = inputs.to(torch.float16).to(torch.int8)
            del rounded
            return inputs.new_empty(*inputs.shape[:-1], layer.out_features)
        with layer.making(DEQUANTISED):
            weight = inputs.new_empty(layer.out_features, layer.in_features)
        return inputs @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer = ctx.layer
        with layer.making(DEQUANTISED):
            weight = gradient.new_empty(layer.out_features, layer.in_features, dtype=layer.dtype)
        return gradient.to(layer.dtype) @ weight, None


def store_linears(
    model: nn.Module,
    settings: QuantizationSettings,
    making: Callable[[str], AbstractContextManager[None]],
    *,
    adapters: str = "lora_",
) -> None:
    """Put stored layers in the place of the base's linear ones; the output head stays as it is.

    PEFT's own small matrices (`adapters` is in their names) are no part of the base.
    """
    head = model.get_output_embeddings()
    for name, parent in list(model.named_modules()):
        if adapters in name:
            continue
        for child, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not head and adapters not in child:
                setattr(parent, child, StoredLinear(layer, settings, making))
