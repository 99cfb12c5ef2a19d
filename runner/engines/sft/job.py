"""Job: what a user writes for the native engine, field by field, with meaning, unit and default.

Its parts are in runner.jobs; the jobs of other engines are its siblings (runner.engines.job_kinds
lists them). Imports pydantic only. Loading, line numbers and overrides are in runner.jobs.load;
nothing here touches a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from runner.common.errors import UsageError
from runner.jobs.base import Job, JobHead
from runner.jobs.data import DataSettings
from runner.jobs.effects import (
    without_bits,
    without_device,
    without_evaluation_task,
    without_events,
    without_layout,
)
from runner.jobs.load import LoadedJob
from runner.jobs.method import (
    LoraSettings,
    Method,
    PrefixSettings,
    QuantizationSettings,
    VisionSettings,
)
from runner.jobs.model import ConflictError, JobModel
from runner.jobs.training import EvaluationSettings, TrackingSettings, TrainingSettings

_Settings = TypeVar("_Settings", DataSettings, TrainingSettings)


class SmokeSettings(JobModel):
    """What `runner smoke` needs where the weights are not on the machine."""

    model_type: str | None = Field(
        None,
        description="transformers' name of the architecture (qwen2, llama, ...), from which a "
        "tiny stand-in with random weights is made; without it a smoke needs the weights.",
    )


class FitSettings(JobModel):
    """What `runner fit` may change besides what leaves the mathematics alone."""

    allow: list[
        Literal["8bit_base", "4bit_base", "fewer_modules", "smaller_rank", "smaller_model"]
    ] = Field(
        [],
        description="Changes of the result that are allowed, taken in this order of their names "
        "in the list: 8bit_base, 4bit_base (bitsandbytes), fewer_modules (q_proj and v_proj "
        "alone), smaller_rank (half, down to 4), smaller_model (the next of fit.models).",
    )
    models: list[str] = Field(
        [], description="Smaller models, largest first, as in `model`, for smaller_model."
    )


def _overrides(base: type[BaseModel], *left_out: str) -> dict[str, object]:
    """The fields of `base`, each optional: what a phase may say otherwise."""
    return {
        name: (info.annotation | None, Field(None, description=info.description))  # type: ignore[operator]
        for name, info in base.model_fields.items()
        if name not in left_out
    }


if TYPE_CHECKING:

    class PhaseData(JobModel): ...

    class PhaseTraining(JobModel): ...

else:
    PhaseData = create_model("PhaseData", __base__=JobModel, **_overrides(DataSettings))
    PhaseTraining = create_model(
        "PhaseTraining", __base__=JobModel, **_overrides(TrainingSettings, "stages")
    )


class Phase(JobModel):
    """One training of several in a row, each with its own rows, optimizer and trained parts."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="Its name in logs and figures.")
    trains: list[Literal["projector", "adapter"]] = Field(
        min_length=1,
        description="What this phase trains: projector (the layers between image tower and "
        "language model, in full), adapter (the job's method), or both.",
    )
    data: PhaseData = Field(
        default_factory=PhaseData, description="Fields of data that differ in this phase."
    )
    training: PhaseTraining = Field(
        default_factory=PhaseTraining, description="Fields of training that differ in this phase."
    )


class SftSettings(JobHead):
    """What only a job of the native engine says."""

    engine: Literal["sft"] = Field(
        "sft", description="What trains: sft (TRL's SFTTrainer), script (your own), or mgm."
    )
    model: str = Field(
        min_length=1,
        description="Weights: a folder in transformers' layout, a hub id OWNER/NAME[@REVISION], "
        "modelscope:OWNER/NAME[@REVISION], or builtin:smollm2-135m-instruct.",
    )
    vision: VisionSettings | None = Field(
        None, description="An image tower before the language model; without it, text alone."
    )
    trust_remote_code: bool = Field(
        False, description="Let the model's own Python code run. Only for code that you trust."
    )
    method: Method = Field(
        "lora",
        description="What is trained: a LoRA adapter, one on a quantized base (qlora), a prefix, "
        "or all weights (full).",
    )
    lora: LoraSettings = Field(LoraSettings(), description="The LoRA adapter's shape.")
    quantization: QuantizationSettings = Field(
        QuantizationSettings(), description="How method qlora stores the base."
    )
    prefix: PrefixSettings = Field(PrefixSettings(), description="The prefix of method prefix.")
    data: DataSettings = Field(description="Rows to train on.")
    training: TrainingSettings = Field(TrainingSettings(), description="How the model is trained.")
    phases: list[Phase] = Field(
        [],
        description="Trainings in a row, each with what differs from data and training above; "
        "without any, there is one.",
    )
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(), description="What runner evaluate measures."
    )
    tracking: TrackingSettings = Field(TrackingSettings(), description="Where figures go.")
    deterministic: bool = Field(
        False,
        description="The same bits in each run of a plan on a GPU, too: torch takes deterministic "
        "kernels only, which costs speed, and a step that has none ends the run by its name.",
    )
    on_oom: Literal["stop", "recover"] = Field(
        "stop",
        description="After CUDA OOM, or a stop over the budget: stop, or recover, that is, take "
        "one step down in memory that keeps the mathematics and resume from the last checkpoint.",
    )
    fit: FitSettings = Field(FitSettings(), description="What runner fit may change.")
    smoke: SmokeSettings = Field(SmokeSettings(), description="Stand-ins for a smoke.")


class SftJob(Job, SftSettings):
    """One fine-tuning job, whole. Anything not said has the default that `runner show` prints."""

    def shown_values(self) -> dict[str, object]:
        """As `runner show` prints it: a phase says only what differs."""
        phases = [phase.model_dump(mode="json", exclude_unset=True) for phase in self.phases]
        return {**super().shown_values(), "phases": phases}

    def own_risks(self) -> list[str]:
        """That the model's own Python is run, where the job lets it."""
        if not self.trust_remote_code:
            return []
        return [f"trust_remote_code runs the Python that comes with the model {self.model!r}"]

    @model_validator(mode="after")
    def _possible(self) -> SftJob:
        cpu = self.launch.device == "cpu"
        if self.lora.dtype == "bf16" and self.training.precision in ("fp16", "fp32"):
            raise ConflictError("lora.dtype", f"bf16 in {self.training.precision} arithmetic")
        if self.method == "prefix" and self.training.gradient_checkpointing:
            raise ConflictError(
                "training.gradient_checkpointing", "can't be used with method prefix (PEFT)"
            )
        if self.vision is not None and self.method != "lora":
            raise ConflictError("method", "a model with an image tower trains by lora here")
        if self.vision is not None and self.launch.deepspeed == "zero3":
            raise ConflictError(
                "launch.deepspeed", "zero3 can't load a model with an image tower; zero2 can"
            )
        names = [phase.name for phase in self.phases]
        for index, phase in enumerate(self.phases):
            if names.index(phase.name) != index:
                raise ConflictError(f"phases.{index}.name", "is the name of an earlier phase too")
            if "adapter" in phase.trains and index + 1 < len(self.phases):
                raise ConflictError(
                    f"phases.{index}.trains",
                    "only the last phase can train the adapter: what an earlier one hands on is "
                    "the projector",
                )
            if "projector" in phase.trains and self.vision is None:
                raise ConflictError(
                    f"phases.{index}.trains", "projector needs an image tower: vision.model"
                )
        _require_pattern(self.evaluation.answer_pattern)
        for field, reason in self._without_effect():
            raise ConflictError(field, reason)
        for resolved in resolved_phases(self):
            _require_possible(resolved, cpu=cpu, num_processes=self.launch.num_processes)
        return self

    def _without_effect(self) -> Iterator[tuple[str, str]]:
        yield from without_device(self.launch, self.budget)
        for block, found in (
            ("evaluation", without_evaluation_task(self.evaluation)),
            ("quantization", without_bits(self.quantization)),
        ):
            yield from ((f"{block}.{name}", reason) for name, reason in found)
        for phase in resolved_phases(self):
            for block, found in (
                ("training", without_events(phase.training)),
                ("data", without_layout(phase.data, sees=self.vision is not None)),
            ):
                yield from ((f"{phase.field}{block}.{name}", reason) for name, reason in found)


def _require_pattern(text: str | None) -> None:
    """Raise ConflictError for an answer_pattern that `runner evaluate` could not compile."""
    try:
        re.compile(text or "")
    except (re.error, RecursionError, OverflowError) as error:
        raise ConflictError(
            "evaluation.answer_pattern",
            f"is not a regular expression: {error}; a pattern of Python's re, such as "
            "(answer[1-5])",
        ) from None


class ResolvedPhase(NamedTuple):
    """What one phase trains, with all its settings; a job without phases has one, unnamed."""

    name: str
    trains: list[Literal["projector", "adapter"]]
    data: DataSettings
    training: TrainingSettings
    field: str
    """What its fields' dotted names start with: "" or "phases.0."."""


def resolved_phases(job: SftJob) -> list[ResolvedPhase]:
    """The trainings of a job, in order, each with whole settings.

    Raises:
        ConflictError: what a phase says does not fit what the job says.
    """
    if not job.phases:
        return [ResolvedPhase("", ["adapter"], job.data, job.training, "")]
    resolved = []
    for index, phase in enumerate(job.phases):
        field = f"phases.{index}."
        data = _merged(job.data, phase.data, f"{field}data")
        training = _merged(job.training, phase.training, f"{field}training")
        resolved.append(ResolvedPhase(phase.name, list(phase.trains), data, training, field))
    return resolved


def _takes_null(model: type[BaseModel], name: str) -> bool:
    """Whether null is a value of a field; where it is none, a phase that says it says nothing."""
    return type(None) in get_args(model.model_fields[name].annotation)


def _merged(base: _Settings, override: JobModel, field: str) -> _Settings:
    said = {
        **base.model_dump(exclude_unset=True),
        **{
            name: value
            for name, value in override.model_dump(exclude_unset=True).items()
            if value is not None or _takes_null(type(base), name)
        },
    }
    try:
        return type(base).model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        name = ".".join(str(part) for part in first["loc"])
        if isinstance(cause, ConflictError):
            name = ".".join(part for part in (name, cause.field) if part)
        raise ConflictError(f"{field}.{name}", str(cause or first["msg"])) from None


def _stages_instead(name: str, training: TrainingSettings) -> str:
    """Why a field can't stand beside training.stages, and the ways out."""
    said = "training.stages says it for each stage; keep one"
    if name != "max_steps":
        return said
    length = sum(stage.max_steps for stage in training.stages)
    return (
        f"{said}: --max-steps {training.max_steps} ends a run after so many of the stages' "
        f"{length:,} steps, and --set training.stages=null leaves the stages out"
    )


def _require_possible(phase: ResolvedPhase, *, cpu: bool, num_processes: int) -> None:
    """Raise ConflictError for settings of one training that contradict each other."""
    training, data = phase.training, phase.data

    def said(name: str) -> bool:  # a default said in so many words contradicts nothing
        value = getattr(training, name)
        return value is not None and value != TrainingSettings.model_fields[name].default

    def refuse(field: str, message: str) -> None:
        raise ConflictError(f"{phase.field}training.{field}", message)

    if training.gradient_checkpointing_layers and not training.gradient_checkpointing:
        refuse("gradient_checkpointing_layers", "needs training.gradient_checkpointing: true")
    if cpu and training.precision == "fp16":
        refuse("precision", "fp16 needs a GPU; launch.device is cpu")
    if training.max_steps is not None and said("num_train_epochs"):
        refuse("num_train_epochs", "max_steps says the length already; keep one")
    if training.stages:
        for name in (
            "max_steps",
            "num_train_epochs",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_ratio",
            "save_steps",
        ):
            if said(name):
                refuse(name, _stages_instead(name, training))
        for index, stage in enumerate(training.stages):
            if stage.warmup_steps >= stage.max_steps:
                refuse(
                    f"stages.{index}.warmup_steps",
                    f"is not shorter than the stage's {stage.max_steps} steps",
                )
    has_eval = data.eval is not None or data.split is not None
    if training.eval_steps and not has_eval:
        refuse("eval_steps", "needs evaluation rows: data.eval or data.split")
    for name in ("load_best_model_at_end", "early_stopping_patience"):
        if getattr(training, name) and not training.eval_steps:
            refuse(name, "needs eval_loss while training: training.eval_steps")
    if training.load_best_model_at_end and not training.stages:
        eval_steps, save_steps = training.eval_steps or 0, training.save_steps
        if save_steps is None or save_steps % eval_steps:
            refuse(
                "save_steps",
                f"must be a multiple of eval_steps ({eval_steps}) with load_best_model_at_end: "
                "only a saved step can be the best",
            )
    if training.max_steps is not None and training.save_from_step > training.max_steps:
        refuse("save_from_step", f"is after the last step, {training.max_steps}")
    product = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * num_processes
    )
    if training.global_batch_size not in (None, product):
        refuse(
            "global_batch_size",
            f"{training.per_device_train_batch_size} rows x "
            f"{training.gradient_accumulation_steps} accumulated x {num_processes} process(es) "
            f"come to {product}",
        )


def sft_job(loaded: LoadedJob) -> SftJob:
    """The job, which has to be one of the native engine.

    Raises:
        UsageError: another engine trains it, of which rows and weights are not known.
    """
    if not isinstance(loaded.job, SftJob):  # for commands that are of this engine alone
        raise UsageError(
            f"{loaded.name} is a job of another engine than sft, which this is for",
            "runner train and runner smoke take jobs of any engine",
        )
    return loaded.job
