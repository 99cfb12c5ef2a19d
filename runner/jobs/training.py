"""How a job trains: batches, learning rates and their stages, saving, trackers, evaluation.

Imports pydantic and runner.jobs.model only. Field names are transformers' TrainingArguments' own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from runner.jobs.model import MAX_SEED, JobModel

MOST_STEPS = 1_000_000_000
"""Of any count of steps, rows or passes: at a thousand steps a second, twelve days."""
MOST_TOKENS = 100_000_000
"""Of any length in tokens: ten times the longest context that models are published with."""
MOST_RATE = 100.0
"""Of a learning rate, a decay: AdamW's own default is 1e-3."""


class Stage(JobModel):
    """One section of a training: optimizer and rows continue, learning rate and saving change."""

    max_steps: int = Field(
        ge=1, le=MOST_STEPS, description="Length of the stage in optimizer steps."
    )
    learning_rate: float = Field(
        gt=0, le=MOST_RATE, description="Peak learning rate in this stage."
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the learning rate continues after the stage's warm-up."
    )
    warmup_steps: int = Field(
        0, ge=0, le=MOST_STEPS, description="Steps in which the stage's learning rate rises from 0."
    )
    save: Literal["never", "end", "every_step"] | Annotated[int, Field(ge=1, le=MOST_STEPS)] = (
        Field(
            "never",
            description="Checkpoints in this stage: never, at its end, after every step, or after "
            "so many steps each (a number).",
        )
    )


class TrainingSettings(JobModel):
    """How training goes, by the names of transformers' TrainingArguments."""

    max_steps: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Optimizer steps; a count. Without it num_train_epochs decides.",
    )
    stages: list[Stage] = Field(
        [],
        description="Sections of one training, each with its own length, learning rate and save "
        "policy, in place of max_steps, learning_rate, warmup_ratio and save_steps.",
    )
    num_train_epochs: float = Field(1.0, gt=0, le=1e6, description="Passes over the training rows.")
    per_device_train_batch_size: int = Field(
        4, ge=1, le=MOST_STEPS, description="Rows in one forward pass on one device; a count."
    )
    per_device_eval_batch_size: int = Field(
        4, ge=1, le=MOST_STEPS, description="Rows in one evaluation pass on one device; a count."
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        le=MOST_STEPS,
        description="Forward passes summed into one optimizer step; a count.",
    )
    global_batch_size: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="What per-device batch size x gradient accumulation x processes must come to; "
        "checked, never used to change one of them.",
    )
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw_torch", description="AdamW by torch, or with 8-bit state by bitsandbytes."
    )
    learning_rate: float = Field(
        2e-4, gt=0, le=MOST_RATE, description="Peak learning rate of AdamW."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the variance.")
    adam_epsilon: float = Field(
        1e-8, gt=0, le=1, description="AdamW's term against division by zero."
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="How the learning rate continues after the warm-up."
    )
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps in which the learning rate rises from 0."
    )
    weight_decay: float = Field(
        0.0, ge=0, le=MOST_RATE, description="AdamW's decoupled weight decay."
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients are scaled down to this norm; 0 leaves them alone."
    )
    max_length: int = Field(
        1024,
        ge=8,
        le=MOST_TOKENS,
        description="Longest row in tokens; longer rows are cut at the end, counted.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    gradient_checkpointing_layers: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="With gradient_checkpointing: the first so many layers recompute, the others "
        "keep their activations; without it, all recompute.",
    )
    loss_chunk_tokens: int | None = Field(
        None,
        ge=16,
        le=MOST_STEPS,
        description="Tokens whose logits the loss holds at once, the others' come after; without "
        "it TRL's 4,096. Smaller takes less memory and more time.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="Number format of weights and arithmetic; auto is bf16 on a GPU that has it, "
        "fp16 on an older one (with a warning for models known to overflow), and fp32 on CPU.",
    )
    seed: int = Field(
        42, ge=0, le=MAX_SEED, description="Seed of weights drawn, dropout and data order."
    )
    logging_steps: int = Field(
        1, ge=1, le=MOST_STEPS, description="Steps between two lines of metrics.jsonl."
    )
    save_steps: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Steps between two checkpoints; without it, only on request.",
    )
    save_from_step: int = Field(
        1,
        ge=1,
        le=MOST_STEPS,
        description="No checkpoint is saved before this step; a request saves at any.",
    )
    save_total_limit: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Checkpoints kept, the newest and (with load_best_model_at_end) the best; "
        "without it, all.",
    )
    eval_steps: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Steps between two evaluations; without it, one at the end.",
    )
    load_best_model_at_end: bool = Field(
        False,
        description="The result is the checkpoint with the lowest eval_loss, not the last one; "
        "needs eval_steps and save_steps that meet.",
    )
    early_stopping_patience: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="End after this many evaluations in a row without a lower eval_loss; a count.",
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="A smaller fall of eval_loss than this counts as none."
    )
    loss_ceiling: float = Field(
        100.0,
        gt=0,
        description="A training loss above this ends the run as non_finite_loss: cross-entropy "
        "starts near ln(vocabulary), about 12, so 100 means that something is broken.",
    )


def beyond_the_end(training: TrainingSettings, steps: int) -> list[str]:
    """Sentences on events that come later than the last of `steps`."""
    lines = []
    if training.save_steps is not None and training.save_steps > steps:
        lines.append(f"save_steps {training.save_steps}: of {steps} steps only the last is saved")
    if training.eval_steps is not None and training.eval_steps > steps:
        lines.append(
            f"eval_steps {training.eval_steps} never comes in {steps} steps: one evaluation, at "
            "the end"
        )
    return lines


class TrackingSettings(JobModel):
    """Where figures go besides metrics.jsonl. Keys come from the environment, never from here."""

    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"], description="Trackers that get the figures; [] for none."
    )
    project: str | None = Field(
        None, description="W&B's project and MLflow's experiment; without it, the job's name."
    )
    offline: bool = Field(
        True,
        description="Keep W&B's and MLflow's records in the run folder and ask no server; false "
        "follows WANDB_MODE and MLFLOW_TRACKING_URI.",
    )


class EvaluationSettings(JobModel):
    """What `runner evaluate` measures."""

    task: Literal["auto", "loss", "classification", "exact_match", "json", "multiple_choice"] = (
        Field(
            "auto",
            description="auto is classification for text_label rows and loss alone for others; all "
            "but loss generate answers. Loss and perplexity are always measured.",
        )
    )
    max_new_tokens: int = Field(
        128, ge=1, le=MOST_TOKENS, description="Longest generated answer in tokens."
    )
    per_device_batch_size: int = Field(
        8, ge=1, le=MOST_STEPS, description="Prompts generated for at once; a count."
    )
    thinking: Literal["strip", "keep"] = Field(
        "strip",
        description="How to treat think blocks before an answer (<think>...</think>, or as the "
        "chat template writes them): strip judges what follows them, keep judges all of it.",
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="Evaluate at most this many rows, drawn with data.split.seed.",
    )
    answer_pattern: str | None = Field(
        None,
        description="multiple_choice only: a regular expression whose first match (its group 1, "
        "if it has one) is the choice; without it, the choices named in the rows are looked for.",
    )
