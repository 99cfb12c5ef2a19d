"""List the settings that reduce a plan's memory, cheapest first. Pure.

Settings of a training are its rows a pass (with accumulation so that the effective batch stays),
the layers that recompute, the loss head's chunk and the optimizer's states. What changes the base
or the adapter changes the result, and is for those that the job allows.
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.engines.sft.plan import SftPlan
from runner.jobs.method import LoraSettings
from runner.jobs.training import TrainingSettings

SMALL_CHUNK = 256
"""Tokens in the loss head's chunks where it is to take less: 16 MiB a tile in half precision."""
STEPPED_DOWN = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "gradient_checkpointing_layers",
    "loss_chunk_tokens",
)
"""The settings of a training that `step_down` changes."""
FEWER_MODULES = ("q_proj", "v_proj")
SMALLEST_RANK = 4


@dataclass(frozen=True)
class Choice:
    """Settings of one training that trade memory for time and leave the mathematics alone."""

    rows: int
    """Per-device batch size."""
    accumulation: int
    recompute: int
    """Layers that recompute their activations; 0: none."""
    layers: int
    """Layers that could; 0: unknown, and then it is all or none."""
    chunk: int | None = None
    optim: str = "adamw_torch"
    offload: str = "none"
    counted: bool = False
    """The job says how many layers recompute, though that may be all of them."""

    @property
    def text(self) -> str:
        """For people."""
        recompute = (
            "no recomputation"
            if not self.recompute
            else "all layers recompute"
            if self.recompute >= self.layers
            else f"{self.recompute} of {self.layers} layers recompute"
        )
        parts = [f"{self.rows} row{'s' if self.rows > 1 else ''} x {self.accumulation}", recompute]
        if self.chunk:
            parts.append(f"loss in chunks of {self.chunk} tokens")
        if self.optim != "adamw_torch":
            parts.append(self.optim)
        if self.offload != "none":
            parts.append(f"{self.offload} offloaded")
        return ", ".join(parts)

    @property
    def changes(self) -> str:
        """What of the result it changes, in words; empty where nothing but rounding order."""
        return "rounds Adam's states to 8 bits" if self.optim != "adamw_torch" else ""


def current(plan: SftPlan, layers: int) -> Choice:
    """What a plan of one training says."""
    training = plan.training
    recompute = 0
    if training.gradient_checkpointing:
        recompute = min(training.gradient_checkpointing_layers or layers or 1, layers or 1)
    return Choice(
        rows=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        recompute=recompute,
        layers=layers or 1,
        chunk=training.loss_chunk_tokens,
        optim=training.optim,
        offload=plan.launch.offload,
        counted=training.gradient_checkpointing_layers is not None,
    )


def with_choice(plan: SftPlan, choice: Choice) -> SftPlan:
    """The plan of one training with these settings."""
    partial = 0 < choice.recompute < choice.layers
    training = plan.training.model_copy(
        update={
            "per_device_train_batch_size": choice.rows,
            "gradient_accumulation_steps": choice.accumulation,
            "gradient_checkpointing": choice.recompute > 0,
            "gradient_checkpointing_layers": choice.recompute if partial else None,
            "loss_chunk_tokens": choice.chunk,
            "optim": choice.optim,
        }
    )
    launch = plan.launch.model_copy(update={"offload": choice.offload})
    return plan.model_copy(update={"training": training, "launch": launch})


def overrides(before: Choice, after: Choice, prefix: str = "") -> dict[str, object]:
    """Dotted field of the job -> value, of what differs. `prefix`: "phases.0." in a phase."""
    out: dict[str, object] = {}
    field = f"{prefix}training."
    if after.rows != before.rows:
        out[f"{field}per_device_train_batch_size"] = after.rows
        out[f"{field}gradient_accumulation_steps"] = after.accumulation
    if after.recompute != before.recompute:
        out[f"{field}gradient_checkpointing"] = after.recompute > 0
        if 0 < after.recompute < after.layers:
            out[f"{field}gradient_checkpointing_layers"] = after.recompute
        elif before.counted:
            out[f"{field}gradient_checkpointing_layers"] = None
    if after.chunk != before.chunk:
        out[f"{field}loss_chunk_tokens"] = after.chunk
    if after.optim != before.optim:
        out[f"{field}optim"] = after.optim
    if after.offload != before.offload:
        out["launch.offload"] = after.offload
    return out


def batch_splits(effective: int) -> list[int]:
    """Rows a pass that keep `effective` rows a step and process: its divisors, largest first."""
    return [rows for rows in range(effective, 0, -1) if effective % rows == 0]


def step_down(plan: SftPlan) -> tuple[TrainingSettings, str] | None:
    """One step down for a plan of one training that ran out of memory: its settings, and in words.

    Only what keeps the mathematics and lets a checkpoint be resumed from: half the rows a pass
    (the next divisor of the effective batch), then recomputation in all layers, then a smaller loss
    chunk. None where nothing is left: each step takes something away for good, so there is an end.
    """
    training = plan.training
    rows, accumulation = (
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
    )
    if rows > 1:
        fewer = next(one for one in batch_splits(rows * accumulation) if one <= max(1, rows // 2))
        more = rows * accumulation // fewer
        changes: dict[str, object] = {
            "per_device_train_batch_size": fewer,
            "gradient_accumulation_steps": more,
        }
        text = f"{fewer} rows x {more} accumulated in place of {rows} x {accumulation}"
    elif plan.method != "prefix" and (
        not training.gradient_checkpointing or training.gradient_checkpointing_layers
    ):
        changes = {"gradient_checkpointing": True, "gradient_checkpointing_layers": None}
        text = "recomputation in all layers (gradient_checkpointing)"
    elif training.loss_chunk_tokens is None or training.loss_chunk_tokens > SMALL_CHUNK:
        changes = {"loss_chunk_tokens": SMALL_CHUNK}
        text = f"the loss in chunks of {SMALL_CHUNK} tokens"
    else:
        return None
    return training.model_copy(update=changes), text


@dataclass(frozen=True)
class Base:
    """A change of the model or the adapter, which changes the result."""

    name: str
    """As in fit.allow; empty for the job's own."""
    text: str
    changes: str
    overrides: dict[str, object]


def bases(plan: SftPlan, models: list[str]) -> list[Base]:
    """The changes that there are for a plan, in the order of how much they change.

    `models`: smaller ones that the job names.
    """
    out: list[Base] = []
    stored = {"lora": 16, "qlora": plan.quantization.bits}.get(plan.method, 0)
    for bits, text in ((8, "8-bit base"), (4, "4-bit base (nf4)")):
        if bits < stored and plan.vision is None:
            method = {"method": "qlora"} if plan.method == "lora" else {}
            out.append(
                Base(
                    f"{bits}bit_base",
                    text,
                    f"the frozen weights are rounded to {bits} bits",
                    {**method, "quantization.bits": bits},
                )
            )
    if plan.method in ("lora", "qlora"):
        targets = plan.lora.target_modules
        if targets == "all-linear" or set(targets) > set(FEWER_MODULES):
            out.append(
                Base(
                    "fewer_modules",
                    f"adapter on {' and '.join(FEWER_MODULES)} alone",
                    "fewer layers are adapted",
                    {"lora.target_modules": list(FEWER_MODULES)},
                )
            )
        rank = plan.lora.r
        while rank // 2 >= SMALLEST_RANK:
            rank //= 2
            out.append(
                Base(
                    "smaller_rank",
                    f"LoRA rank {rank}",
                    "the adapter can express less",
                    {"lora.r": rank},
                )
            )
    out += [
        Base("smaller_model", model, "another, smaller model", {"model": model}) for model in models
    ]
    return out


def with_base(plan: SftPlan, base: Base) -> SftPlan:
    """The plan with a base's changes but a smaller model, which has to be planned anew."""
    changes: dict[str, object] = {}
    lora, quantization = plan.lora, plan.quantization
    for field, value in base.overrides.items():
        match field:
            case "method":
                changes["method"] = value
            case "quantization.bits":
                quantization = quantization.model_copy(update={"bits": value})
            case "lora.target_modules" | "lora.r":
                lora = LoraSettings.model_validate(
                    {**lora.model_dump(), field.removeprefix("lora."): value}
                )
            case _:
                raise ValueError(f"{field} has to be planned anew")
    return plan.model_copy(update={**changes, "lora": lora, "quantization": quantization})
