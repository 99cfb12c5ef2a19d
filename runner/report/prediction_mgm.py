"""The predicted memory of the toolkit's trainings, and of a full finetuning, in words. Pure."""

from __future__ import annotations

from runner.common.output import field
from runner.common.units import format_bytes
from runner.vram.prediction import Prediction, TrainingMemory

FULL = "all weights, AdamW on the GPU"
FULL_OFFLOADED = "all weights as the baseline has it, AdamW on the host"
CARD_BYTES = int(23.6 * 2**30)
"""Of a 24 GB GPU (RTX 3090, 4090), what the driver leaves."""
ENTRIES = 256_000


def explain_full_finetune(prediction: Prediction, budget: int | None) -> list[str]:
    """Why a full finetune fails on 24 GB and LoRA fits the budget, in sentences."""
    named = {memory.phase: memory for memory in prediction.trainings}
    full, offloaded = named[FULL], named[FULL_OFFLOADED]
    lines = [
        field(
            "full",
            f"{_batch(full)} takes {format_bytes(full.process_bytes)}, a 24 GB GPU has "
            f"{format_bytes(CARD_BYTES)}: weights, gradients and Adam's moments leave no room for "
            f"the logits, {format_bytes(full.parts.get('logits'))}; one copy of them in bf16 is "
            f"{full.rows} x {full.tokens} x {ENTRIES:,} x 2 bytes = "
            f"{format_bytes(full.rows * full.tokens * ENTRIES * 2)}",
        ),
        field(
            "",
            f"with Adam on the host and the baseline's {_batch(offloaded)} the logits alone take "
            f"{format_bytes(offloaded.parts.get('logits'))} of "
            f"{format_bytes(offloaded.process_bytes)}",
        ),
    ]
    for name in ("pretrain", "finetune"):
        memory = named[name]
        fits = "" if budget is None else _fits(memory, budget)
        kind = "LoRA" if name == "finetune" else "projector and patch info mining"
        lines.append(
            field(
                name,
                f"{kind}, {_batch(memory)}: {format_bytes(memory.process_bytes)} "
                f"({format_bytes(memory.low_bytes)} to {format_bytes(memory.high_bytes)}){fits}",
            )
        )
    return lines


def _fits(memory: TrainingMemory, budget: int) -> str:
    if memory.high_bytes <= budget:
        return f", fits {format_bytes(budget)}"
    if memory.low_bytes > budget:
        return f", does NOT fit {format_bytes(budget)}"
    return f", may or may not fit {format_bytes(budget)}"


def _batch(memory: TrainingMemory) -> str:
    return f"{memory.rows} x {memory.tokens:,} tokens"
