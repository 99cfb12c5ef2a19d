"""Find changes that make a run of the MGM toolkit smaller, after it ran out of memory. Pure.

Nothing of the toolkit is predicted here: what a change saves is arithmetic where it can be (Gemma's
logits, the image loaders' processes), and the order is that of what it costs. Imports the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from runner.common.units import format_bytes
from runner.engines.mgm.plan import PlannedMgm, PlannedMgmTraining

Memory = Literal["gpu", "host"]
LOGITS_BYTES = 12
"""For each token and entry of the vocabulary (docs/mgm.md): fp32 logits, shifted, and gradients."""
VOCABULARY = 256_000  # Gemma's
SHORTEST = 1024  # 576 tokens of an image, and room for a question and an answer
_STAGES = ("pretrain", "finetune")


def changes(
    plan: PlannedMgm, memory: Memory, stage: str | None, limit_bytes: int | None, peak: int | None
) -> Iterator[str]:
    """Changes of the job in words, each with its --set, the cheapest first.

    `memory` is what there was too little of; `stage` the one that ran, by which it is known which
    training is meant; `limit_bytes` what it may take, `peak` the most it took.
    """
    stages = [stage] if stage in _STAGES else list(_STAGES)
    if memory == "host":
        for name in stages:
            workers = getattr(plan, name).dataloader_num_workers
            if workers:
                yield (
                    f"no processes of their own read images, {workers} do now; same result "
                    f"(--set {name}.dataloader_num_workers=0)"
                )
    else:
        for name in stages:
            yield from _on_the_card(plan, name)
    if peak is not None and limit_bytes is not None and peak > limit_bytes:
        field = "budget.host_memory" if memory == "host" else "budget.gpu_memory"
        more = _rounded_up(peak * 5 // 4)
        yield (
            f"a larger budget: it took {format_bytes(peak)} and had not reached its end "
            f"(--set {field}={more}MiB)"
        )


def _on_the_card(plan: PlannedMgm, name: str) -> Iterator[str]:
    training: PlannedMgmTraining = getattr(plan, name)
    batch, tokens = training.per_device_train_batch_size, training.model_max_length
    if batch > 1 and plan.variant == "train":
        saved = format_bytes((batch - 1) * tokens * VOCABULARY * LOGITS_BYTES)
        accumulation = training.gradient_accumulation_steps * batch
        yield (
            f"1 row at once in {name}, summed {accumulation} times: {saved} less for the logits, "
            f"the same steps (--set {name}.per_device_train_batch_size=1 "
            f"--set {name}.gradient_accumulation_steps={accumulation})"
        )
    if tokens > SHORTEST:
        saved = format_bytes((tokens - SHORTEST) * VOCABULARY * LOGITS_BYTES)
        yield (
            f"rows of {SHORTEST} tokens in {name}: {saved} less for the logits, longer rows are "
            f"cut (--set {name}.model_max_length={SHORTEST})"
        )
    if name == "finetune" and plan.bits == 16:
        yield (
            "the language model in 4 bits in finetune: some 3 GiB less, another result "
            "(--set finetune.bits=4)"
        )


def _rounded_up(size: int) -> int:
    """MiB, to the next 64."""
    return -(-size // (64 << 20)) * 64
