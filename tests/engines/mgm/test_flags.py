"""The rendered flags against the contract's tables, copied here as data."""

from __future__ import annotations

from typing import Literal

import pytest

from runner.engines.mgm.command import parser_problems, recorded_flags, stage_flags
from tests.engines.mgm.cases import planned, rendered, settings

# ../shared/docs/mgm-contract.md, "Flags of both ... calls"
BOTH = {
    "--deepspeed": "zero2_offload.json",
    "--model_name_or_path": "/srv/zoo/gemma-2b-it",
    "--version": "gemma",
    "--vision_tower": "/srv/zoo/OpenAI/clip-vit-large-patch14-336",
    "--vision_tower_aux": "/srv/zoo/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
    "--mm_projector_type": "mlp2x_gelu",
    "--mm_vision_select_layer": "-2",
    "--mm_use_im_start_end": "False",
    "--mm_use_im_patch_token": "False",
    "--image_size_aux": "768",
    "--bf16": "True",
    "--tf32": "True",
    "--gradient_checkpointing": "True",
    "--lazy_preprocess": "True",
    "--num_train_epochs": "1",
    "--per_device_eval_batch_size": "4",
    "--evaluation_strategy": "no",
    "--save_strategy": "steps",
    "--weight_decay": "0.",
    "--warmup_ratio": "0.03",
    "--lr_scheduler_type": "cosine",
    "--report_to": "none",
    # the editable part
    "--dataloader_num_workers": "4",
    "--logging_steps": "1",
    "--save_steps": "100",
    "--save_total_limit": "1",
}
PRETRAIN = {
    "--data_path": "data/pretrain.json",
    "--image_folder": "/srv/rows",
    "--learning_rate": "0.001",
    "--tune_mm_mlp_adapter": "True",
    "--output_dir": "training_dirs/MGM-2B-Pretrain-default",
    "--model_max_length": "2048",
}
FINETUNE = {
    "--data_path": "/srv/rows/finetune.json",
    "--image_folder": "/srv/rows",
    "--learning_rate": "2e-05",
    "--pretrain_mm_mlp_adapter": "training_dirs/MGM-2B-Pretrain-default/mm_projector.bin",
    "--image_aspect_ratio": "pad",
    "--group_by_modality_length": "True",
    "--output_dir": "training_dirs/MGM-2B-Finetune-default",
}
LORA = {
    "--lora_enable": "True",
    "--lora_r": "16",
    "--lora_alpha": "32",
    "--lora_dropout": "0.1",
    "--lora_bias": "none",
}
PROFILES = {  # batch, accumulation, length of (pretrain, finetune)
    "16GiB": (("1", "256", "2048"), ("1", "128", "1024")),
    "24GiB": (("2", "128", "2048"), ("1", "128", "2048")),
}


def shape(batch: str, accumulation: str, length: str) -> dict[str, str]:
    return {
        "--per_device_train_batch_size": batch,
        "--gradient_accumulation_steps": accumulation,
        "--model_max_length": length,
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_both_stages_have_the_flags_of_the_contract_and_no_others(profile: str) -> None:
    plan = planned(settings(profile=profile))
    first, second = PROFILES[profile]
    assert dict(stage_flags(plan, "pretrain")) == {**BOTH, **PRETRAIN, **shape(*first)}
    assert dict(stage_flags(plan, "finetune")) == {**BOTH, **FINETUNE, **LORA, **shape(*second)}


def test_every_flag_is_in_the_script_as_the_plan_has_it() -> None:
    plan = planned()
    script = rendered(plan)["launch.sh"].splitlines()
    for stage in ("pretrain", "finetune"):
        for name, value in stage_flags(plan, stage):  # type: ignore[arg-type]
            assert any(line.strip().startswith(f"{name} ") and value in line for line in script), (
                name
            )


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_smoke_changes_steps_saves_and_accumulation_alone(
    stage: Literal["pretrain", "finetune"],
) -> None:
    full = dict(stage_flags(planned(), stage))
    smoke = dict(stage_flags(planned(variant="smoke"), stage))
    changed = {name: value for name, value in smoke.items() if full.get(name) != value}
    assert changed == {
        "--max_steps": "5",
        "--save_steps": "2",
        "--gradient_accumulation_steps": "1",
    }
    assert smoke["--logging_steps"] == "1"


def test_quantized_training_is_asked_for_in_the_finetune_stage_alone() -> None:
    plan = planned(settings(finetune={"bits": 4}))
    assert "--bits" not in dict(stage_flags(plan, "pretrain"))
    assert dict(stage_flags(plan, "finetune"))["--bits"] == "4"


@pytest.mark.parametrize("variant", ["train", "smoke"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("bits", [16, 4])
def test_the_recorded_parser_takes_every_flag(
    variant: Literal["train", "smoke"], device: Literal["cuda", "cpu"], bits: int
) -> None:
    plan = planned(settings(finetune={"bits": bits}), variant=variant, device=device)
    for stage in ("pretrain", "finetune"):
        flags = stage_flags(plan, stage)  # type: ignore[arg-type]
        assert parser_problems(flags, recorded_flags()) == []


def test_the_recorded_parser_refuses_what_the_real_one_refuses() -> None:
    known = recorded_flags()
    assert len(known) == 169
    assert not any("-" in name.removeprefix("--") for name in known)  # underscores only
    for flag, value in (
        ("--max-steps", "5"),
        ("--lora-r", "16"),
        ("--lora_r", "sixteen"),
        ("--bf16", "yes please"),
        ("--evaluation_strategy", "sometimes"),
        ("--target_modules", "q_proj"),
    ):
        assert len(parser_problems([(flag, value)], known)) == 1, flag
    assert parser_problems([("--lora_r", "8"), ("--lora_r", "8")], known) == [
        "--lora_r: given twice"
    ]


def test_a_cpu_trial_leaves_deepspeed_and_tf32_out_and_says_so() -> None:
    plan = planned(device="cpu")
    flags = dict(stage_flags(plan, "finetune"))
    assert flags["--use_cpu"] == "True"
    assert not {"--deepspeed", "--tf32"} & set(flags)
    assert "# SUBSTITUTED: CPU trial" in rendered(plan)["launch.sh"]
