"""One optimizer step of a plan on fake tensors, traced: forward, loss head, backward, optimizer.

Imports torch, transformers and trl. It does what the trainer does, in the same order: TRL's fused
loss head, autocast as accelerate sets it, recomputation as transformers sets it, accumulated
gradients that are there already, AdamW with its states. On a GPU what lives at each moment is the
same for every step but the first, which has no optimizer states yet.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from runner.engines.sft.inside.memory.cuda_emulation import CudaAutocast, triton_head
from runner.engines.sft.inside.memory.meta_model import Skeleton, make_skeleton
from runner.engines.sft.inside.memory.tracker import Tracker
from runner.engines.sft.inside.model.saving import apply_checkpointing, loss_chunks
from runner.engines.sft.inside.model.weights import precision_dtype
from runner.engines.sft.plan import SftPlan
from runner.vram.allocator import Libc, libc_holds, reserved_peak

OPTIMIZER_BLOCK = 256
"""Values that share a scale in bitsandbytes' 8-bit optimizers (optim/optimizer.py)."""
SMALLEST_8BIT = 4096
"""Tensors with fewer values keep 32-bit states (min_8bit_size)."""


@dataclass(frozen=True)
class Traced:
    """What a traced step came to. Bytes, of the process that holds one replica."""

    allocated_bytes: int
    """The most that tensors held at once."""
    reserved_bytes: int
    """What torch's allocator holds for them, fragments included."""
    libc: Libc
    """What libc holds for all but the weights, where the step runs on a CPU."""
    parts: dict[str, int]
    """What the peak was made of."""
    phase: str
    """Where in the step the peak was."""
    flops: float
    """Floating-point operations of one forward and backward pass, recomputation included."""
    skeleton: Skeleton
    seconds: float


Head = Literal["fused", "whole_logits"]
"""How the loss is computed: TRL's tiles, or every logit at once, in fp32 and shifted by a copy, as
modeling_gemma.py of transformers 4.38 and MGM's own forward do."""


def trace(
    plan: SftPlan,
    tokens: int,
    *,
    images: int = 0,
    layers: int | None = None,
    head: Head = "fused",
    gradients_stay: bool = False,
) -> Traced:
    """Trace one step of a plan of one training.

    Args:
        plan: one of Plan.trainings.
        tokens: length of every row of the batch, which has per_device_train_batch_size rows.
        images: images in the batch; of a model with an image tower.
        layers: decoder layers of the model, in place of its own number.
        head: how the loss is computed.
        gradients_stay: under DeepSpeed too; else it takes each away as it is made (shards.py has
            what it keeps of them).

    Raises:
        RefusedError: the config can't be had, or the adapter does not fit.
        Exception: as the model's code fails under fake tensors, whatever it is.
    """
    began = time.monotonic()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tracker = Tracker()
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        if plan.launch.device == "cuda":
            stack.enter_context(triton_head())
        stack.enter_context(loss_chunks(plan.training))
        skeleton = make_skeleton(plan, mode, tracker, layers)
        flops = _run(plan, skeleton, mode, tracker, tokens, images, head, gradients_stay)
    return Traced(
        allocated_bytes=tracker.peak_bytes,
        reserved_bytes=reserved_peak(tracker.events),
        libc=libc_holds(
            tracker.events[tracker.weights : tracker.step], tracker.events[tracker.step :]
        ),
        parts={name: size for name, size in tracker.peak_parts.items() if size > 0},
        phase=tracker.peak_phase,
        flops=flops,
        skeleton=skeleton,
        seconds=time.monotonic() - began,
    )


def _run(
    plan: SftPlan,
    skeleton: Skeleton,
    mode: Any,
    tracker: Tracker,
    tokens: int,
    images: int,
    head: Head,
    gradients_stay: bool,
) -> float:
    from trl.trainer.utils import add_fused_lm_head

    model, training = skeleton.model, plan.training
    model.train()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        if base is not model:
            model.enable_input_require_grads()
        apply_checkpointing(base, training)
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    trained = [one for one in model.parameters() if one.requires_grad]
    frozen = [one for one in model.parameters() if not one.requires_grad]
    sharded = plan.launch.deepspeed != "none"  # states and gradients are shards.py's then
    moved = sharded and not gradients_stay
    rows = training.per_device_train_batch_size
    part = "trained weights" if plan.method == "full" else "adapter"
    # the toolkit's older code repeats them always
    unpacked = _one_sequence_a_row() if head == "fused" else contextlib.nullcontext()
    with mode, tracker, _head_named(tracker), unpacked:
        tracker.see_all(frozen, "frozen weights")
        tracker.see_all(model.buffers(), "frozen weights")
        tracker.see_all(trained, part)
        tracker.weights = len(tracker.events)
        tracker.part = "batch"
        batch = _batch(base, rows, tokens, images, plan)

        def made(one: Any) -> None:
            tracker.see(one.grad, "gradients")
            if moved:
                one.grad = None

        # autograd hands gradients over without an operation that could be seen
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(made)
        optimizer = None
        if not sharded:
            optimizer = _optimizer(plan, trained, tracker)
        if training.gradient_accumulation_steps > 1 and not moved:
            with tracker.making("gradients"):
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
        tracker.forget_peak()
        tracker.flops = 0.0
        tracker.part, tracker.phase = "activations", "forward pass"
        with _autocast(plan):
            loss = _loss(model, batch, head, tracker)
        tracker.part, tracker.phase = "backward pass", "backward pass"
        loss.backward()
        del loss
        flops = tracker.flops
        if optimizer is not None:
            tracker.part, tracker.phase = "optimizer step", "optimizer step"
            if training.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
            optimizer()
    return flops


def _loss(model: Any, batch: dict[str, Any], head: Head, tracker: Tracker) -> Any:
    if head == "fused":
        out = model(**batch, fused_lm_head=True, use_cache=False)
        return (-out.log_probs).sum() / 1000
    labels = batch.pop("labels")
    entries = int(model.config.get_text_config().vocab_size)
    tracker.parts_by_width[entries] = "logits"
    logits = model(**batch, use_cache=False).logits.float()
    tracker.phase = "loss head"
    shifted = logits[..., :-1, :].contiguous()
    return torch.nn.functional.cross_entropy(
        shifted.view(-1, entries), labels[..., 1:].contiguous().view(-1)
    )


@contextlib.contextmanager
def _autocast(plan: SftPlan) -> Iterator[None]:
    """As accelerate sets it; under DeepSpeed weights are in the plan's precision instead."""
    if plan.precision == "fp32" or plan.launch.deepspeed != "none":
        yield
        return
    with contextlib.ExitStack() as stack:
        if plan.launch.device == "cuda":
            stack.enter_context(CudaAutocast())
        stack.enter_context(torch.autocast("cpu", dtype=precision_dtype(plan.precision)))
        yield


@contextlib.contextmanager
def _head_named(tracker: Tracker) -> Iterator[None]:
    """What TRL's loss head makes is counted as logits."""
    from trl.trainer import utils

    function = utils._ChunkedLogProbFunction
    forward, backward = function.forward, function.backward

    def named(call: Any) -> Any:
        def inside(*args: Any, **kwargs: Any) -> Any:
            phase, tracker.phase = tracker.phase, f"loss head, {tracker.phase}"
            try:
                with tracker.making("logits"):
                    return call(*args, **kwargs)
            finally:
                tracker.phase = phase

        return staticmethod(inside)

    function.forward, function.backward = named(forward), named(backward)
    try:
        yield
    finally:
        function.forward, function.backward = staticmethod(forward), staticmethod(backward)


@contextlib.contextmanager
def _one_sequence_a_row() -> Iterator[None]:
    """Rows are not packed, which transformers can't see in positions without content: it would make
    a mask, and with it repeat keys and values for every head."""
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def _batch(base: Any, rows: int, tokens: int, images: int, plan: SftPlan) -> dict[str, Any]:
    """Token ids, labels and, where rows of other lengths are padded, a mask; images."""
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    batch: dict[str, Any] = {"input_ids": ids, "labels": torch.zeros_like(ids)}
    if rows > 1:
        batch["attention_mask"] = torch.ones_like(ids)
    if images:
        tower = base.config.vision_config
        side = int(tower.image_size)
        batch["pixel_values"] = torch.zeros(images, 3, side, side)
        _fixed_places(base)
    return batch


def _fixed_places(base: Any) -> None:
    """Where images go can't be looked up in ids without content: every place takes part."""

    def mask(input_ids: Any, inputs_embeds: Any, image_features: Any = None, **_: Any) -> Any:
        return torch.zeros_like(inputs_embeds, dtype=torch.bool)

    base.model.get_placeholder_mask = mask


def _optimizer(plan: SftPlan, trained: list[Any], tracker: Tracker) -> Any:
    """A step of the plan's AdamW whose states are there: torch's own, or 8-bit ones' sizes."""
    with tracker.making("optimizer states"):
        if plan.training.optim == "adamw_torch":
            optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
            for parameter in trained:
                state = optimizer.state[parameter]
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            return optimizer.step
        states = [
            torch.zeros(size, dtype=dtype)
            for parameter in trained
            for dtype, size in states_8bit(parameter.numel())
        ]
    return lambda: len(states)


def states_8bit(values: int) -> list[tuple[Any, int]]:
    """dtype and elements of the states that bitsandbytes keeps for a tensor of so many values.

    Paged states of 100,000 values or more live in unified memory, which is counted here all the
    same: they are on the GPU whenever it has room for them.
    """
    if values < SMALLEST_8BIT:
        return [(torch.float32, values)] * 2
    return [(torch.uint8, values), (torch.float32, -(-values // OPTIMIZER_BLOCK))] * 2
