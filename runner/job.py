"""Job: what a user writes in jobs/NAME.yaml, field by field, with meaning, unit and default.

Imports pydantic and runner.units only. `python -m runner.job` prints the JSON Schema for editors.
Loading, line numbers and overrides are in runner.jobfile; nothing here touches a file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from runner.units import SIZE_EXPECTED, parse_bytes

MAX_SEED = 2**32 - 1  # numpy's generator takes no more


class JobModel(BaseModel):
    """A part of a job: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ConflictError(ValueError):
    """Settings that exclude each other; `field`, seen from the model that raises it, is to change.

    A ValueError, so that pydantic collects it with the other problems.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _size(value: object) -> object:
    if isinstance(value, str):
        return parse_bytes(value)
    raise ValueError(f"expected {SIZE_EXPECTED}")


ByteSize = Annotated[
    int,
    BeforeValidator(_size, json_schema_input_type=str),
    Field(json_schema_extra={"examples": ["12GiB", "900MiB"]}),
]
"""A size written with its unit ("12GiB"); bytes once validated."""


class LoraSettings(JobModel):
    """The LoRA adapter, by PEFT's names."""

    r: int = Field(16, ge=1, le=1024, description="LoRA rank: columns of A and B; a count.")
    lora_alpha: float = Field(
        32, gt=0, description="Scaling numerator; the update is scaled by lora_alpha / r."
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of adapter inputs dropped in training, 0 to 1."
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Layers that get an adapter: all-linear (every linear layer but the output "
        "head) or a list of module names such as [q_proj, v_proj].",
    )

    @model_validator(mode="after")
    def _some_modules(self) -> LoraSettings:
        if self.target_modules == []:
            raise ConflictError("target_modules", "is empty, so no layer would be trained")
        return self


DataFormat = Literal["auto", "messages", "conversations", "alpaca", "text_label"]


class SplitSettings(JobModel):
    """Rows held out of training for evaluation."""

    eval: float = Field(0.1, gt=0, lt=1, description="Share of the rows held out, 0 to 1.")
    seed: int = Field(
        42,
        ge=0,
        le=MAX_SEED,
        description="Seed of the draw; the same seed and rows always give the same split.",
    )


class HubData(JobModel):
    """Which part of a hub data set is read (only for `train: hub:...`)."""

    name: str | None = Field(None, description="The data set's configuration name.")
    split: str = Field("train", description="The split that data.train reads from the hub.")
    eval_split: str = Field(
        "validation", description="The split that data.eval reads from the hub."
    )


class DataSettings(JobModel):
    """Where rows come from and how they become conversations."""

    train: str = Field(
        min_length=1,
        description="Training rows: a .json, .jsonl, .csv, .tsv or .parquet file, or "
        "hub:OWNER/NAME[@REVISION]. A relative path is looked for beside the job file, then in "
        "the current folder; given by --set, in the current folder.",
    )
    eval: str | None = Field(
        None, description="Evaluation rows, same form as train. Without it, see split."
    )
    format: DataFormat = Field(
        "auto",
        description="How a row is laid out; auto detects it from the keys and says why, or "
        "refuses where more than one layout fits.",
    )
    split: SplitSettings | None = Field(None, description="Hold rows of train out for evaluation.")
    hub: HubData = Field(HubData(), description="Details of a hub data set.")
    system: str | None = Field(
        None, description="System message put before every conversation that has none."
    )
    prompt: str = Field(
        "{text}",
        description="text_label only: the user message; {text} stands for the row's text.",
    )
    labels: dict[str, str] | None = Field(
        None, description="text_label only: the answer for each label, e.g. {'0': negative}."
    )
    placeholders: dict[str, str] = Field(
        {}, description="Text for {{name}} placeholders in the rows, e.g. {name: Rue}."
    )
    max_rows: int | None = Field(None, ge=1, description="Read at most this many rows; a count.")
    sample: str | None = Field(
        None,
        description="A small file of the same layout, beside the job file, that a smoke takes "
        "where the training rows are not on the machine.",
    )

    @model_validator(mode="after")
    def _one_eval_source(self) -> DataSettings:
        if self.eval is not None and self.split is not None:
            raise ConflictError(
                "eval", "data.eval and data.split both name evaluation rows; keep one"
            )
        if self.eval == self.train and not self.train.startswith("hub:"):
            raise ConflictError(
                "eval", "names the training rows; data.split holds some of them out"
            )
        if self.eval == self.train and self.hub.eval_split == self.hub.split:
            raise ConflictError("hub.eval_split", "names the split that is trained on")
        if "{text}" not in self.prompt:
            raise ConflictError("prompt", "does not contain {text}")
        return self


class TrainingSettings(JobModel):
    """How training goes, by the names of transformers' TrainingArguments."""

    max_steps: int | None = Field(
        None, ge=1, description="Optimizer steps; a count. Without it num_train_epochs decides."
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    per_device_train_batch_size: int = Field(
        4, ge=1, description="Rows in one forward pass on one device; a count."
    )
    per_device_eval_batch_size: int = Field(
        4, ge=1, description="Rows in one evaluation pass on one device; a count."
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Forward passes summed into one optimizer step; a count."
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate of AdamW.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="How the learning rate goes on after the warm-up."
    )
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="Share of the steps in which the learning rate rises from 0."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Gradients are scaled down to this norm; 0 leaves them alone."
    )
    max_length: int = Field(
        1024, ge=8, description="Longest row in tokens; longer rows are cut at the end, counted."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="Number format of weights and arithmetic; auto is bf16 on a GPU that has it "
        "and fp32 elsewhere.",
    )
    seed: int = Field(
        42, ge=0, le=MAX_SEED, description="Seed of weights drawn, dropout and data order."
    )
    logging_steps: int = Field(1, ge=1, description="Steps between two lines of metrics.jsonl.")
    save_steps: int | None = Field(
        None, ge=1, description="Steps between two checkpoints; without it, only on request."
    )
    save_total_limit: int | None = Field(
        None, ge=1, description="Checkpoints kept, newest last; without it, all."
    )
    eval_steps: int | None = Field(
        None, ge=1, description="Steps between two evaluations; without it, one at the end."
    )
    loss_ceiling: float = Field(
        100.0,
        gt=0,
        description="A training loss above this ends the run as non_finite_loss: cross-entropy "
        "starts near ln(vocabulary), about 12, so 100 means that something is broken.",
    )


class LaunchSettings(JobModel):
    """How many processes train, on what, and who shards the state."""

    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Where training runs; auto is cuda where a GPU and a CUDA torch are."
    )
    num_processes: int = Field(
        1, ge=1, le=64, description="Training processes; one a GPU, or several CPU ranks (gloo)."
    )
    deepspeed: Literal["none", "zero1", "zero2", "zero3"] = Field(
        "none", description="DeepSpeed ZeRO stage that shards optimizer, gradients, weights."
    )
    threads_per_process: int | None = Field(
        None,
        ge=1,
        description="CPU threads of each process (OMP_NUM_THREADS); without it, the cores shared "
        "out among the processes.",
    )


class BudgetSettings(JobModel):
    """How much memory the run may take; the guard enforces it."""

    gpu_memory: ByteSize | None = Field(
        None, description="GPU memory on each card, with unit, e.g. 12GiB; enforced in GPU runs."
    )
    host_memory: ByteSize | None = Field(
        None,
        description="Host memory of the run's processes together, with unit; enforced in CPU runs.",
    )
    grace_seconds: float = Field(
        60.0, ge=0, le=3600, description="Seconds between the request to end and the kill."
    )


class SmokeSettings(JobModel):
    """What `runner smoke` needs where the weights are not on the machine."""

    model_type: str | None = Field(
        None,
        description="transformers' name of the architecture (qwen2, llama, ...), from which a "
        "tiny stand-in with random weights is made; without it a smoke needs the weights.",
    )


class Job(JobModel):
    """One fine-tuning job, whole. Anything not said has the default that `runner show` prints."""

    description: str = Field("", description="What the job is for, in a line.")
    engine: Literal["sft"] = Field("sft", description="What trains: sft is TRL's SFTTrainer.")
    model: str = Field(
        min_length=1,
        description="Weights: a folder in transformers' layout, a hub id OWNER/NAME[@REVISION], "
        "or builtin:smollm2-135m-instruct.",
    )
    trust_remote_code: bool = Field(
        False, description="Let the model's own Python code run. Only for code that you trust."
    )
    method: Literal["lora"] = Field("lora", description="What is trained: a LoRA adapter.")
    lora: LoraSettings = Field(LoraSettings(), description="The adapter's shape.")
    data: DataSettings = Field(description="Rows to train on.")
    training: TrainingSettings = Field(TrainingSettings(), description="How training goes.")
    launch: LaunchSettings = Field(LaunchSettings(), description="Processes and devices.")
    budget: BudgetSettings = Field(BudgetSettings(), description="Memory the run may take.")
    smoke: SmokeSettings = Field(SmokeSettings(), description="Stand-ins for a smoke.")
    timeout_minutes: float | None = Field(
        None, gt=0, description="The run is ended, with a checkpoint, after this many minutes."
    )

    @model_validator(mode="after")
    def _possible(self) -> Job:
        if self.launch.device == "cpu" and self.budget.gpu_memory and not self.budget.host_memory:
            raise ConflictError(
                "budget.gpu_memory",
                "can't be enforced where launch.device is cpu; give budget.host_memory",
            )
        if self.launch.device == "cpu" and self.training.precision == "fp16":
            raise ConflictError("training.precision", "fp16 needs a GPU; launch.device is cpu")
        if self.training.eval_steps and not (self.data.eval or self.data.split):
            raise ConflictError(
                "training.eval_steps", "needs evaluation rows: data.eval or data.split"
            )
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, as committed in jobs/job.schema.json."""
    schema = Job.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    import json

    print(json.dumps(json_schema(), indent=2))
