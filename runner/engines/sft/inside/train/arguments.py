"""The plan's training settings as TRL's SFTConfig. Imports trl when called."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from runner.common.errors import RefusedError
from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder


def training_arguments(plan: SftPlan, folder: RunFolder, *, has_eval: bool) -> Any:
    """The SFTConfig of one training.

    Saving, the best model, early stopping and trackers are ours (milestones, trackers), so the
    libraries' are off. With stages, learning_rate and its schedule are RunTrainer's.

    Raises:
        RefusedError: the optimizer needs a package that is not here.
    """
    require_optimizer(plan)
    from trl import SFTConfig

    from runner.engines.sft.inside.train.trainer import world_size

    training, launch = plan.training, plan.launch
    # transformers 5.23 renamed it; earlier ones know only the old name
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    recompute = next(
        name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names
    )
    options: dict[str, Any] = {recompute: training.gradient_checkpointing}
    if launch.device == "cpu":
        # With use_cpu accelerate would quietly take DDP in place of DeepSpeed. Without it, and
        # given gloo by name, DeepSpeed finds the CPU by DS_ACCELERATOR; its settings come from
        # the launcher (deepspeed.json), since passed here they would lose the backend again.
        options["use_cpu"] = launch.deepspeed == "none"
        if world_size() > 1 or launch.deepspeed != "none":
            options["ddp_backend"] = "gloo"
    # transformers takes bf16 without use_cpu for a GPU's, and looks for that GPU as it is made
    is_bf16 = plan.precision == "bf16"
    is_bf16_late = is_bf16 and not options.get("use_cpu", True)
    stages = training.stages
    evaluates = training.eval_steps is not None and has_eval
    arguments = SFTConfig(
        output_dir=str(folder.checkpoints),
        max_steps=training.max_steps or -1,
        num_train_epochs=training.num_train_epochs,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        # torch's AdamW in its fused form, transformers' own default since torch 2.8
        optim="adamw_torch_fused" if training.optim == "adamw_torch" else training.optim,
        learning_rate=stages[0].learning_rate if stages else training.learning_rate,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        lr_scheduler_type=(
            "constant_with_warmup"
            if training.lr_scheduler_type == "constant" and training.warmup_ratio
            else training.lr_scheduler_type
        ),
        warmup_steps=training.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=is_bf16 and not is_bf16_late,
        fp16=plan.precision == "fp16",
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a NaN must be seen, not averaged away
        save_strategy="no",
        load_best_model_at_end=False,
        eval_strategy="steps" if evaluates else "no",  # also after the last step
        eval_steps=training.eval_steps if evaluates else None,
        prediction_loss_only=True,  # logits of a whole evaluation do not fit in memory
        max_length=None,  # rows were cut, and counted, before
        packing=False,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # rows carry input_ids and labels
        remove_unused_columns=plan.vision is None,  # images have a collator that takes all
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=launch.device == "cuda",
        log_level="warning",
        # Without this, DDP puts gradients into other buckets after its first step, and so after a
        # resume's first too: they are then added up in another order, which three summands show
        # in their last bit, and two never do. Nothing is unused; the look costs next to nothing.
        ddp_find_unused_parameters=world_size() > 2,
        **options,
    )
    arguments.bf16 = is_bf16
    return arguments


def require_optimizer(plan: SftPlan) -> None:
    """Refuse an optimizer whose package is not here. Imports nothing."""
    for part in plan.trainings:
        if "8bit" in part.training.optim and importlib.util.find_spec("bitsandbytes") is None:
            raise RefusedError(
                f"training.optim is {part.training.optim}, but bitsandbytes is not installed",
                "pip install bitsandbytes, or --set training.optim=adamw_torch",
            )
