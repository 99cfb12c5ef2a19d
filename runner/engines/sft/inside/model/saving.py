"""Settings that trade memory for time and leave the mathematics alone: what recomputes, and how
many tokens' logits are there at once. Imports trl when called.

The trainer and the prediction (memory/) both apply them by these functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runner.jobs.training import TrainingSettings


def decoder_layers(model: Any) -> list[Any]:
    """The layers of a model that can recompute their activations, in order; an image tower's not.

    A tower is frozen and runs without gradients.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer) and "vision_tower" not in name
    ]


def apply_checkpointing(model: Any, training: TrainingSettings) -> int:
    """Let only the first `gradient_checkpointing_layers` layers recompute; how many do.

    To be called once transformers has switched recomputation on in all of them. The first ones:
    when the backward pass comes to them, what the later layers kept is free already.
    """
    layers = decoder_layers(model)
    wanted = training.gradient_checkpointing_layers
    count = len(layers) if wanted is None else min(wanted, len(layers))
    for number, layer in enumerate(layers):
        if number >= count:
            layer.gradient_checkpointing = False
    return count


@contextmanager
def loss_chunks(training: TrainingSettings) -> Iterator[None]:
    """TRL's loss head in tiles of `loss_chunk_tokens` tokens, where the plan says so."""
    from trl.kernels import chunked_logprob

    before = chunked_logprob.TOKEN_CHUNK_SIZE
    if training.loss_chunk_tokens is not None:
        chunked_logprob.TOKEN_CHUNK_SIZE = training.loss_chunk_tokens
    try:
        yield
    finally:
        chunked_logprob.TOKEN_CHUNK_SIZE = before
