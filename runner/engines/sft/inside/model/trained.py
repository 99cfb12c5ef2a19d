"""A run's trained model, loaded again by plain PEFT and transformers, and logits compared.

Imports torch, transformers and peft when called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import RefusedError, RunnerError
from runner.engines.render import read_plan
from runner.engines.sft.inside.model.adapter import load_adapter
from runner.engines.sft.inside.model.weights import load_model, load_whole, precision_dtype
from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder

PROJECTOR_FILE = "projector.safetensors"
LIMIT = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.1}
"""How far two computations of the same logits may lie apart, as a share of the largest: rounding
in these precisions, with room; a wrong adapter is off by about 1."""


@dataclass(frozen=True)
class Difference:
    """How far one model's logits lie from another's on the same tokens."""

    largest_relative: float
    """Largest difference, as a share of the other's largest logit."""
    relative: float
    """Root mean square of the differences, as a share of the other's logits'."""
    same_first_choice: int
    """Tokens for which both hold the same token the likeliest next."""
    tokens: int


def load_trained(plan: SftPlan, folder: RunFolder) -> Any:
    """The model that a run trained: base with adapter, quantized as in training, or whole.

    Raises RefusedError where the run has left none, or the base can't be had.
    """
    require_result(plan, folder)
    if plan.method == "full" and plan.trains != ["projector"]:
        return load_whole(plan, folder.model)
    base = load_base(plan, folder)
    return base if plan.trains == ["projector"] else load_adapter(base, folder.adapter)


def load_base(plan: SftPlan, folder: RunFolder) -> Any:
    """What the last training of a run started from: the base, with a projector trained before."""
    if plan.vision is None:
        return load_model(plan)
    from transformers import set_seed

    from runner.engines.sft.inside.model.vision.projector import load_projector, ready_projector

    set_seed(plan.training.seed)  # a projector that no phase trained was drawn by it
    base = load_model(plan)
    if "projector" in plan.trains:
        ready_projector(base)  # in fp32, as it was trained and saved
    projector = _projector_file(plan, folder)
    if projector is not None:
        load_projector(base, projector)
    return base


def _projector_file(plan: SftPlan, folder: RunFolder) -> Path | None:
    """The projector as trained last, apart from one in the adapter; None where none was."""
    if plan.trains == ["projector"]:
        return folder.path / PROJECTOR_FILE
    for phase in reversed(read_plan(folder.plan).earlier):
        file = folder.phase(phase.name) / PROJECTOR_FILE
        if file.is_file():
            return file
    return None


def require_result(plan: SftPlan, folder: RunFolder) -> None:
    """Refuse a run whose last training did not end, or ended without a result."""
    if not result_file(plan, folder).is_file():
        raise RefusedError(
            f"run {folder.name} has no finished {result_folder(plan, folder).name}",
            f"runner report {folder.name} says how it ended",
        )


def result_folder(plan: SftPlan, folder: RunFolder) -> Path:
    """Where a run's result lies: adapter/, or model/ where all weights were trained."""
    if plan.trains == ["projector"]:
        return folder.path
    return folder.model if plan.method == "full" else folder.adapter


def result_file(plan: SftPlan, folder: RunFolder) -> Path:
    """The file without which a result is none."""
    if plan.trains == ["projector"]:
        return folder.path / PROJECTOR_FILE
    name = "config.json" if plan.method == "full" else "adapter_model.safetensors"
    return result_folder(plan, folder) / name


def reload_result(
    plan: SftPlan, folder: RunFolder, trainer: Any, row: dict[str, Any]
) -> dict[str, Any]:
    """Load the result anew and compare its logits with those of the model in memory.

    Under ZeRO-3 the trained model is sharded, so only the load itself is checked.

    Raises RunnerError where they differ by more than rounding does.
    """
    fresh = load_trained(plan, folder).eval()
    if plan.launch.deepspeed == "zero3":
        return {"loaded": True, "compared": False}
    trained = trainer.accelerator.unwrap_model(trainer.model).eval()
    if plan.vision is None:
        batch = token_batch(row["input_ids"][:64])
    else:
        batch = {
            name: value for name, value in trainer.data_collator([row]).items() if name != "labels"
        }
    found = difference(
        logits(fresh, [batch], plan.precision), logits(trained, [batch], plan.precision)
    )
    limit = LIMIT[plan.precision]
    if not found.largest_relative <= limit:
        raise RunnerError(
            f"the saved {result_folder(plan, folder).name} is not what was trained: reloaded "
            f"logits differ by {found.largest_relative:.3g} of their largest value "
            f"(limit {limit:g})"
        )
    return {
        "loaded": True,
        "compared": True,
        "largest_relative_difference": found.largest_relative,
    }


def token_batch(ids: Sequence[int]) -> dict[str, Any]:
    """One row of token ids as a model's input."""
    import torch

    tensor = torch.tensor([list(ids)])
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}


def logits(model: Any, batches: Iterable[dict[str, Any]], precision: str) -> list[Any]:
    """A model's logits for each batch of one row: float32 tensors (tokens, vocabulary) on the CPU.

    `precision` other than fp32 computes under autocast, as training does.
    """
    import torch

    device = next(model.parameters()).device
    mixed = torch.autocast(
        device.type, dtype=precision_dtype(precision), enabled=precision != "fp32"
    )
    out = []
    with torch.no_grad(), mixed:
        for batch in batches:
            moved = {
                name: value.to(device) if torch.is_tensor(value) else value
                for name, value in batch.items()
            }
            out.append(model(**moved).logits[0].float().cpu())
    return out


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> Difference:
    """Compare logits (tokens, vocabulary) of the same rows; NaN counts as infinitely far."""
    largest = scale = squares = energy = 0.0
    same = tokens = 0
    for one, other in zip(ours, theirs, strict=True):
        gap = (one - other).nan_to_num(nan=float("inf"))
        largest = max(largest, float(gap.abs().max()))
        scale = max(scale, float(other.abs().max()))
        squares += float(gap.double().square().sum())
        energy += float(other.double().square().sum())
        same += int((one.argmax(-1) == other.argmax(-1)).sum())
        tokens += one.shape[0]
    return Difference(
        largest_relative=largest / (scale or 1.0),
        relative=(squares / (energy or 1.0)) ** 0.5,
        same_first_choice=same,
        tokens=tokens,
    )
