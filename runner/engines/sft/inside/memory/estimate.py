"""Memory of a step from a model's sizes alone, for models that can't be traced.

Imports torch by way of `meta_model`. Activations by Korthikanti et al. 2022 (34 bytes a token and
hidden value for a layer in half precision, attention computed without its matrix), with what LoRA
keeps of its inputs; as wide off as 30 %.
"""

from __future__ import annotations

import time
from typing import Any

from runner.engines.sft.inside.memory.meta_model import Skeleton, largest_module, meta_model
from runner.engines.sft.inside.memory.step import Traced
from runner.engines.sft.plan import SftPlan
from runner.vram.allocator import Libc
from runner.vram.sharding import state_bytes

BYTES_A_VALUE = 34
"""Of a layer's activations, for each token and hidden value, in half precision."""
TILE_TOKENS, TILE_ENTRIES = 4096, 32_768


def estimate(plan: SftPlan, tokens: int, *, images: int = 0) -> Traced:
    """What `step.trace` gives, by formula. Raises RefusedError where there is no config."""
    began = time.monotonic()
    model, config, notes = meta_model(plan)
    text = config.get_text_config()
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    total = sum(one.numel() for one in model.parameters())
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    held = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    frozen = weights - held
    if plan.method == "qlora":
        frozen = int(frozen / 2 * plan.quantization.bits / 8 * 1.06)
        weights = frozen + held
    rows, training = plan.training.per_device_train_batch_size, plan.training
    width = 4 if plan.precision == "fp32" else 2
    layers, hidden = int(text.num_hidden_layers), int(text.hidden_size)
    layer = rows * tokens * hidden * BYTES_A_VALUE * width // 2
    recomputed = layers if training.gradient_checkpointing else 0
    if training.gradient_checkpointing and training.gradient_checkpointing_layers:
        recomputed = min(layers, training.gradient_checkpointing_layers)
    kept = (layers - recomputed) * layer + recomputed * rows * tokens * hidden * width
    tile = min(rows * tokens, training.loss_chunk_tokens or TILE_TOKENS) * TILE_ENTRIES * width
    sharded = plan.launch.deepspeed != "none"
    parts = {
        "frozen weights": frozen,
        "adapter" if plan.method != "full" else "trained weights": held,
        "gradients": held,
        "optimizer states": 0 if sharded else state_bytes(trained, training),
        "activations": kept + (layer if recomputed else 0),
        "logits": tile + rows * tokens * hidden * 4,
    }
    peak = sum(parts.values())
    skeleton = Skeleton(
        model=None,
        config=config,
        notes=notes,
        weight_bytes=weights,
        trainable=trained,
        total=total,
        largest_layer=largest_module(model),
        layers=layers,
    )
    passes: Any = 2 + (2 * total == 2 * trained) + recomputed / max(1, layers)
    return Traced(
        allocated_bytes=peak,
        reserved_bytes=int(peak * 1.02),
        libc=Libc(int(1.15 * (peak - frozen - held)), 0),
        parts=parts,
        phase="backward pass",
        flops=2.0 * total * rows * tokens * passes,
        skeleton=skeleton,
        seconds=time.monotonic() - began,
    )
