"""PlannedMgm -> the files of its run: launch.sh, zero2_offload.json and the scripts in mgm/.

Pure but for reading this package's own scripts and template. Imports runner.plans.render and
this package's plan and command.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from runner.engines.mgm.command import (
    CAPPED,
    CONVERTED,
    ZERO2_OFFLOAD,
    InRun,
    merged_folder,
    output_folder,
    projector_file,
    stage_flags,
)
from runner.engines.mgm.plan import PlannedMgm, PlannedMgmTraining
from runner.plans.render import templates

SCRIPTS = (
    "attempt",
    "cap",
    "convert",
    "ending",
    "finding",
    "infer",
    "load",
    "merge",
    "pictures",
    "preflight",
    "records",
    "room",
    "rows",
    "stage",
    "steps",
    "train",
    "watch_loss",
    "whole",
)
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.bin",
    "config.json",
    "non_lora_trainables.bin",
    "trainer_state.json",
)


def render_mgm(
    plan: PlannedMgm,
    *,
    title: str,
    version: str,
    plan_hash: str = "not hashed",
    host_budget: int | None = None,
) -> dict[str, str]:
    """Name in the run folder -> text of every file that is rendered for `plan`.

    `host_budget`: bytes of host memory that the guard lets the run take, where it has such a limit.
    """
    files = {
        "launch.sh": launch_script(plan, title, version, plan_hash, host_budget),
        "mgm/plan.json": plan.model_dump_json(indent=1) + "\n",
    }
    if plan.device == "cuda":
        files[ZERO2_OFFLOAD] = zero2_offload()
    for name in SCRIPTS:
        files[f"mgm/{name}.py"] = script_text(name)
    return files


def script_text(name: str) -> str:
    """A stage's script, which the run folder gets a copy of."""
    return (Path(__file__).parent / "stages" / f"{name}.py").read_text(encoding="utf-8")


def launch_script(
    plan: PlannedMgm, title: str, version: str, plan_hash: str, host_budget: int | None = None
) -> str:
    """launch.sh: all stages, for people to read and for bash to run."""
    environment = templates()
    environment.filters |= {
        "quote": quote,
        "batch": batch_line,
        "in_run": InRun,
    }
    pretrain, finetune = output_folder(plan, "pretrain"), output_folder(plan, "finetune")
    merged = merged_folder(plan)
    return environment.get_template("mgm.sh.j2").render(
        plan=plan,
        title=title,
        version=version,
        plan_hash=plan_hash,
        host_budget=host_budget,
        capped=CAPPED,
        converted=CONVERTED,
        pretrain_flags=stage_flags(plan, "pretrain"),
        finetune_flags=stage_flags(plan, "finetune"),
        pretrain_output=pretrain,
        finetune_output=finetune,
        projector=projector_file(plan),
        pretrain_state=InRun(f"{pretrain}/trainer_state.json"),
        script={name: InRun(f"mgm/{name}.py") for name in SCRIPTS},
        adapter_files=[InRun(f"{finetune}/{name}") for name in ADAPTER_FILES],
        merged=merged,
        merged_index=InRun(f"{merged}/model.safetensors.index.json"),
        # what both trainings read beside their rows; folders count by sizes and times
        sources=[
            f"{plan.toolkit}/mgm",
            plan.model_name_or_path,
            plan.vision_tower,
            plan.vision_tower_aux,
        ],
        base_config=f"{plan.model_name_or_path}/config.json",
        benchmarks=[
            ("textvqa", plan.infer.textvqa_questions, plan.infer.textvqa_images),
            ("mmbench", plan.infer.mmbench, None),
        ],
    )


def quote(value: str) -> str:
    """One shell word; a path in the run folder begins with the folder's variable."""
    if isinstance(value, InRun):
        return f'"$RUN_FOLDER"/{shlex.quote(value)}'
    return shlex.quote(value)


def batch_line(training: PlannedMgmTraining) -> str:
    """A training in a line, for the script's head."""
    return (
        f"batch {training.per_device_train_batch_size} x accumulation "
        f"{training.gradient_accumulation_steps}, {training.global_batch_size} samples a step of "
        f"at most {training.model_max_length} tokens, learning rate {training.learning_rate:g}, "
        f"rows {training.data_path}"
    )


def zero2_offload() -> str:
    """DeepSpeed's config: ZeRO-2, the optimizer in host memory; "auto" by the toolkit's flags.

    Never ZeRO-3, whose "auto" prefetch sizes are fractional (trap 9).
    """
    record = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "overlap_comm": True,
            "contiguous_gradients": True,
            "sub_group_size": 1e9,
            "reduce_bucket_size": "auto",
        },
    }
    return json.dumps(record, indent=2) + "\n"


def mgm_lines(plan: PlannedMgm) -> list[tuple[str, str]]:
    """Label and text of what a run of the toolkit is, for people."""
    bits = f" on a {plan.bits}-bit base" if plan.bits != 16 else ""
    return [
        ("toolkit", plan.toolkit),
        ("model", plan.model_name_or_path),
        ("method", f"LoRA r {plan.lora.r} alpha {plan.lora.lora_alpha}{bits}, in finetune alone"),
        ("pretrain", batch_line(plan.pretrain)),
        ("finetune", batch_line(plan.finetune)),
    ]
