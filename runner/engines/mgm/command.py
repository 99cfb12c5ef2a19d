"""PlannedMgm -> the flags of the toolkit's trainings, and a check of them by its recorded parser.

Pure but for `recorded_flags`, which reads flags.json beside this file. Imports the standard
library and this package's plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from runner.engines.mgm.plan import PlannedMgm
from runner.engines.mgm.stages.steps import warmup_ratio

Stage = Literal["pretrain", "finetune"]
Flags = list[tuple[str, str]]


class InRun(str):
    """A path inside the run folder, which is where the launch script lies."""

    __slots__ = ()


CONVERTED = InRun("data/pretrain.json")
CAPPED = InRun("data/pretrain.jsonl")
ZERO2_OFFLOAD = InRun("zero2_offload.json")


def output_folder(plan: PlannedMgm, stage: Stage) -> InRun:
    """Where a training writes."""
    name = plan.pretrain_name if stage == "pretrain" else plan.finetune_name
    return InRun(f"training_dirs/{name}")


def merged_folder(plan: PlannedMgm) -> InRun:
    """Where the merged model lies."""
    return InRun(f"training_dirs/{plan.merged_name}")


def projector_file(plan: PlannedMgm) -> InRun:
    """What the pretraining leaves for the finetuning."""
    return InRun(f"{output_folder(plan, 'pretrain')}/mm_projector.bin")


def stage_flags(plan: PlannedMgm, stage: Stage) -> Flags:
    """The flags of one training in the baseline script's order, LoRA's last and in finetune alone.

    On a CPU the flags --deepspeed and --tf32 are left out and --use_cpu is added.
    """
    pretrain = stage == "pretrain"
    training = plan.pretrain if pretrain else plan.finetune
    cuda = plan.device == "cuda"
    flags: Flags = [("--deepspeed", ZERO2_OFFLOAD)] if cuda else [("--use_cpu", "True")]
    flags += [
        ("--model_name_or_path", plan.model_name_or_path),
        ("--version", "gemma"),
        ("--data_path", CONVERTED if pretrain else training.data_path),
        ("--image_folder", training.image_folder),
        ("--vision_tower", plan.vision_tower),
        ("--vision_tower_aux", plan.vision_tower_aux),
    ]
    if not pretrain:
        flags += [("--pretrain_mm_mlp_adapter", projector_file(plan))]
    flags += [("--mm_projector_type", "mlp2x_gelu")]
    if pretrain:
        flags += [("--tune_mm_mlp_adapter", "True")]
    flags += [
        ("--mm_vision_select_layer", "-2"),
        ("--mm_use_im_start_end", "False"),
        ("--mm_use_im_patch_token", "False"),
    ]
    if not pretrain:
        flags += [("--image_aspect_ratio", "pad"), ("--group_by_modality_length", "True")]
    flags += [
        ("--image_size_aux", str(plan.image_size_aux)),
        ("--bf16", "True"),
        ("--output_dir", output_folder(plan, stage)),
        ("--num_train_epochs", f"{plan.num_train_epochs:g}"),
        ("--per_device_train_batch_size", str(training.per_device_train_batch_size)),
        ("--per_device_eval_batch_size", "4"),
        ("--gradient_accumulation_steps", str(training.gradient_accumulation_steps)),
        ("--evaluation_strategy", "no"),
        ("--save_strategy", "steps"),
        ("--save_steps", str(plan.save_steps)),
        ("--save_total_limit", str(plan.save_total_limit)),
        ("--learning_rate", f"{training.learning_rate:g}"),
        ("--weight_decay", "0."),
        ("--warmup_ratio", f"{warmup_ratio(plan.max_steps):g}"),
        ("--lr_scheduler_type", "cosine"),
        ("--logging_steps", str(plan.logging_steps)),
    ]
    if cuda:
        flags += [("--tf32", "True")]
    flags += [
        ("--model_max_length", str(training.model_max_length)),
        ("--gradient_checkpointing", "True"),
        ("--dataloader_num_workers", str(training.dataloader_num_workers)),
        ("--lazy_preprocess", "True"),
        ("--report_to", "none"),
    ]
    if plan.max_steps is not None:
        flags += [("--max_steps", str(plan.max_steps))]
    if not pretrain:
        flags += [
            ("--lora_enable", "True"),
            ("--lora_r", str(plan.lora.r)),
            ("--lora_alpha", str(plan.lora.lora_alpha)),
            ("--lora_dropout", f"{plan.lora.lora_dropout:g}"),
            ("--lora_bias", plan.lora.bias),
        ]
        if plan.bits != 16:
            flags += [("--bits", str(plan.bits))]
    return flags


def recorded_flags() -> dict[str, dict[str, object]]:
    """The flags of the toolkit's real parser: name -> type, choices, default (flags.json)."""
    record = json.loads(Path(__file__).with_name("flags.json").read_text(encoding="utf-8"))
    flags: dict[str, dict[str, object]] = record["flags"]
    return flags


def parser_problems(
    flags: Iterable[tuple[str, str]], recorded: Mapping[str, Mapping[str, object]]
) -> list[str]:
    """What the real parser would refuse in `flags`, a line each; [] where it takes them all."""
    problems = []
    seen: set[str] = set()
    for name, value in flags:
        known = recorded.get(name)
        if known is None:
            problems.append(f"{name}: the toolkit's parser has no such flag")
        elif name in seen:
            problems.append(f"{name}: given twice")
        elif (expected := _refusal(value, known)) is not None:
            problems.append(f"{name}: {value!r} where it takes {expected}")
        seen.add(name)
    return problems


def _refusal(value: str, known: Mapping[str, Any]) -> str | None:
    """What the flag takes, if `value` is not that."""
    choices, kind = known.get("choices"), known["type"]
    if choices is not None:
        return None if value in choices else f"one of {', '.join(choices)}"
    if kind == "bool":
        return None if value.lower() in ("true", "false") else "True or False"
    if kind in ("int", "float"):
        try:
            int(value) if kind == "int" else float(value)
        except ValueError:
            return f"{'an' if kind == 'int' else 'a'} {kind}"
    return None if value else "a value that is not empty"
