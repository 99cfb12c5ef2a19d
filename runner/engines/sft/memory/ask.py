"""Predictions by plan: kept in the cache, corrected by what was measured. Imports no torch.

What a prediction depends on is hashed without torch, so that one that is kept is had at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Unpack

from runner.common import durable
from runner.common.caches import cache_folder
from runner.engines.sft.memory.messages import Question, Request
from runner.engines.sft.plan import SftPlan
from runner.plans.plan_file import plan_yaml
from runner.vram.calibration import (
    Correction,
    apply,
    correction,
    matching,
    read_records,
    shipped_records,
)
from runner.vram.prediction import Prediction, read_prediction

VERSION = 4
"""Raised with every change of what is traced or computed, so that no cache of before is reused."""
ASSUME_VARIABLE = "RUNNER_FOOTPRINT"
"""Set to "assumed" what libraries hold is not measured: for tests."""
ASSUMED_NOTE = "what the training libraries hold was not measured on this machine"
"""In the notes of a prediction that stands on an assumption in place of a measurement."""
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "deepspeed")


@dataclass(frozen=True)
class Batch:
    """The longest batch of one training."""

    tokens: int
    images: int
    because: str


def key(plan: SftPlan, batches: Sequence[Batch], versions: dict[str, str | None]) -> str:
    """Equal for plans that take the same memory."""
    parts: list[object] = [VERSION, versions, _configs(plan)]
    fields = {"model", "vision", "trust_remote_code", "method", "lora", "quantization", "prefix"}
    parts.append(plan.model_dump(mode="json", include=fields | {"precision"}))
    launch = {"device", "num_processes", "deepspeed", "offload"}
    parts.append(plan.launch.model_dump(mode="json", include=launch))
    training = {
        *("per_device_train_batch_size", "optim", "max_grad_norm", "gradient_checkpointing"),
        *("gradient_checkpointing_layers", "loss_chunk_tokens"),
    }
    for part, batch in zip(plan.trainings, batches, strict=True):
        parts += [part.phase, part.trains, asdict(batch)]
        parts.append(part.training.model_dump(mode="json", include=training))
        parts.append(part.training.gradient_accumulation_steps > 1)
    return _hash(parts)


def plan_key(plan: SftPlan, versions: dict[str, str | None]) -> str:
    """Equal for the same plan, its rows included, whose longest batch has to be looked for first.

    By its hash, and by what of it is on this machine: without a tokenizer the batch is another.
    """
    return _hash(["plan", VERSION, versions, plan.hash, _configs(plan)])


def _hash(parts: list[object]) -> str:
    canonical = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _configs(plan: SftPlan) -> list[str | None]:
    folders = [plan.model.folder, plan.vision.model.folder if plan.vision else None]
    return [_config(folder) for folder in folders]


def _config(folder: str | None) -> str | None:
    """The hash of a folder's config.json; None where there is none."""
    if folder is None:
        return None
    try:
        return hashlib.sha256((Path(folder) / "config.json").read_bytes()).hexdigest()
    except OSError:
        return None


def kept(name: str) -> Prediction | None:
    """The prediction that is kept under a key, uncorrected."""
    return read_prediction(_place(name))


def predicted(
    plan: SftPlan,
    batches: Sequence[Batch],
    versions: dict[str, str | None],
    predict: Callable[[SftPlan, Sequence[Batch], dict[str, str | None]], Prediction],
) -> Prediction:
    """The prediction of a plan, uncorrected, from the cache or made and kept there."""
    name = key(plan, batches, versions)
    found = kept(name)
    if found is not None:
        return found
    made = predict(plan, batches, versions)
    keep(name, made)
    return made


def keep(name: str, prediction: Prediction) -> None:
    """Keep an uncorrected prediction under a key.

    Not one that stands on an assumption where a measurement failed (on a busy machine it takes too
    long): the next one may be measured.
    """
    if ASSUMED_NOTE in prediction.notes and os.environ.get(ASSUME_VARIABLE) != "assumed":
        return
    keep_record(name, prediction.model_dump(mode="json"))


def kept_record(name: str) -> dict[str, object] | None:
    """What is kept under a name, whatever it is; None where there is nothing, or it is damaged."""
    record = durable.read_json(_place(name))
    return record if isinstance(record, dict) else None


def keep_record(name: str, record: Mapping[str, object]) -> None:
    """Keep a record under a name."""
    path = _place(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_json(path, record)


def _place(name: str) -> Path:
    return cache_folder() / "vram" / f"{name}.json"


def stack(versions: dict[str, str | None]) -> str:
    """The packages that decide what a step takes, in a line."""
    return " ".join(f"{name} {versions.get(name)}" for name in ("torch", "transformers", "trl"))


def correction_of(
    *, device: str, method: str, versions: dict[str, str | None]
) -> Correction | None:
    """What this user's measurements, and those that runner ships, say; None where there are none.

    `device`: the GPU's name, or "cpu".
    """
    records = [*shipped_records(), *read_records()]
    return correction(matching(records, device, stack(versions), method))


def corrected(
    prediction: Prediction, *, device: str, method: str, versions: dict[str, str | None]
) -> Prediction:
    """The prediction as measurements correct it; the rest as `correction_of`."""
    found = correction_of(device=device, method=method, versions=versions)
    return apply(prediction, found)


def write_request(
    folder: Path, plan: SftPlan, batches: Sequence[Batch] | None = None, **asked: Unpack[Question]
) -> list[str]:
    """Module and argument that put a question to the predicting process; written into `folder`.

    Args:
        batches: of each training; None where they are to be found from the rows.
        asked: fit, cheapest or mgm, as the main module of engines/sft/inside/memory says; without,
            a prediction.
    """
    plan_path, path = folder / "plan.yaml", folder / "request.json"
    plan_path.write_text(plan_yaml(plan), encoding="utf-8")
    record: Request = {
        "plan": str(plan_path),
        "batches": None
        if batches is None
        else [
            {"tokens": one.tokens, "images": one.images, "because": one.because} for one in batches
        ],
        **asked,
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    return ["runner.engines.sft.inside.memory", str(path)]
