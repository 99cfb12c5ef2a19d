"""The memory of the MGM toolkit's trainings, by its native relative and what that lacks.

Imports torch by way of `step`. Traced: Gemma behind the CLIP tower in bf16, LoRA or all weights,
with the toolkit's own loss, which holds every logit. Computed: the ConvNeXt tower, patch info
mining, the optimizer. The sizes of its parts are those of the published MGM-2B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runner.engines.sft.inside.memory.predict import TRACED_SHARE
from runner.engines.sft.inside.memory.step import trace
from runner.engines.sft.memory.messages import StageAsked
from runner.engines.sft.plan import SftPlan
from runner.vram.context import CONTEXT_BYTES, CONTEXT_SPREAD, WORKSPACE_BYTES
from runner.vram.prediction import CONTEXT, HostMemory, Prediction, TrainingMemory
from runner.vram.sharding import loading_bytes

CONVNEXT_WEIGHTS = 197_767_336
"""openclip-convnext-large-d-320's image tower (timm convnext_large with its projection)."""
MINING_WEIGHTS = 7_000_000
"""vlm_uni_*: trained in full beside the projector."""
GEMMA_ENTRIES = 256_000

Where = Literal["host", "card"]


@dataclass(frozen=True)
class Stage:
    """One training of the toolkit, as asked for."""

    name: str
    training: int
    """Of the native relative's trainings, counted from 0."""
    method: Literal["lora", "full"]
    rows: int
    tokens: int
    adam: Where = "host"
    """Where the optimizer's states are: zero2_offload.json keeps them on the host."""


def predict_stages(plan: SftPlan, stages: list[Stage]) -> Prediction:
    """The prediction of each stage; `plan` is the native relative's, under ZeRO-2."""
    found = [_predict(plan, stage) for stage in stages]
    trainings = [memory for memory, _, _ in found]
    notes = list(dict.fromkeys(note for _, notes, _ in found for note in notes))
    weights = max(size for _, _, size in found)
    host = 16 * max(one.trainable for one in trainings[:2]) if trainings else 0
    return Prediction(
        device="cuda",
        num_processes=plan.launch.num_processes,
        trainings=trainings,
        host=HostMemory(
            loading_bytes=loading_bytes(weights, plan.launch, on_device=False), offload_bytes=host
        ),
        notes=[
            "traced: Gemma and CLIP by transformers' own code, with a loss that holds every logit "
            "as the toolkit's does; computed: ConvNeXt, patch info mining, optimizer states",
            *notes,
        ],
    )


def _predict(plan: SftPlan, stage: Stage) -> tuple[TrainingMemory, list[str], int]:
    part = plan.trainings[stage.training]
    training = part.training.model_copy(update={"per_device_train_batch_size": stage.rows})
    part = part.model_copy(update={"training": training, "method": stage.method})
    traced = trace(part, stage.tokens, images=stage.rows, head="whole_logits", gradients_stay=True)
    skeleton = traced.skeleton
    trained = skeleton.trainable + MINING_WEIGHTS
    parts = {
        **traced.parts,
        "ConvNeXt tower": 2 * CONVNEXT_WEIGHTS,
        "patch info mining": 4 * MINING_WEIGHTS,
    }
    if stage.adam == "card":
        parts["optimizer states"] = 4 * trained  # two moments in bf16, as the weights are
    allocated = sum(parts.values())
    fragments = traced.reserved_bytes - traced.allocated_bytes
    parts |= {
        "allocator's fragments": fragments,
        "cuBLAS workspace": WORKSPACE_BYTES,
        CONTEXT: CONTEXT_BYTES,
    }
    process = sum(parts.values())
    half = int(2 * TRACED_SHARE * process) + CONTEXT_SPREAD  # a relative, not the thing itself
    memory = TrainingMemory(
        phase=stage.name,
        rows=stage.rows,
        tokens=stage.tokens,
        images=stage.rows,
        length_from="model_max_length; captions and questions are shorter as a rule",
        method="traced",
        allocated_bytes=allocated,
        reserved_bytes=process - CONTEXT_BYTES,
        overhead_bytes=CONTEXT_BYTES,
        process_bytes=process,
        low_bytes=process - half,
        high_bytes=process + half,
        parts={name: size for name, size in parts.items() if size},
        at=traced.phase,
        flops=traced.flops,
        trainable=trained,
        total=skeleton.total + CONVNEXT_WEIGHTS + MINING_WEIGHTS,
        layers=skeleton.layers,
    )
    return memory, skeleton.notes, skeleton.weight_bytes + 2 * CONVNEXT_WEIGHTS


def answer(plan: SftPlan, asked: list[StageAsked]) -> dict[str, object]:
    """The JSON of `predict_stages`."""
    return predict_stages(plan, [Stage(**one) for one in asked]).model_dump(mode="json")
