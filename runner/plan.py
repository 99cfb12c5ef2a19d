"""Plan: a Job with its variant, the facts of the host and every path resolved; frozen, hashable.

Pure: values in, values out (imports pydantic, runner.job and the records of runner.facts).
Nothing downstream looks at the Job, the environment or the clock to decide what to do.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from runner.errors import RefusedError
from runner.facts import Facts
from runner.job import Job, ResolvedPhase, resolved_phases
from runner.job_data import DataSettings, SplitSettings
from runner.job_method import LoraSettings, Method, PrefixSettings, QuantizationSettings
from runner.job_model import JobModel
from runner.job_training import EvaluationSettings, TrackingSettings, TrainingSettings
from runner.jobfile import LoadedJob
from runner.sources import DataSource, ModelSource

SCHEMA_VERSION = 1
SMOKE_DEFAULT_STEPS = 5
SMOKE_ACCUMULATION = 2
"""Forward passes in a smoke's step at most: more of them take no more memory and show no more."""
FP16_OVERFLOWS = ("qwen2", "qwen2_5_vl", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "t5")
"""Architectures trained in bf16 whose activations leave fp16's range (65,504): transformers#22817,
LlamaFactory#7263, and Gemma's model cards."""
Variant = Literal["train", "smoke", "dry_run"]


class PlannedModel(JobModel):
    """Which weights the engine loads."""

    kind: Literal["folder", "hub", "modelscope", "builtin", "standin"]
    id: str
    revision: str | None = None
    folder: str | None = None
    model_type: str | None = Field(None, description="standin only: the architecture")


class PlannedVision(JobModel):
    """The image tower before the language model; a stand-in for both is one model."""

    model: PlannedModel
    feature_layer: int
    feature_select: Literal["default", "full"]
    projector_act: str


class PlannedData(JobModel):
    """Which rows one source gives."""

    kind: Literal["file", "hub", "modelscope"]
    path: str | None = None
    id: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None


class PlannedRows(JobModel):
    """Every source of rows of one training. The texts in DataSettings are resolved here."""

    train: PlannedData
    mixed: list[PlannedData] = Field([], description="In the order of data.mix.sources")
    eval: PlannedData | None = None
    test: PlannedData | None = None
    questions: PlannedData | None = None

    @property
    def each(self) -> list[PlannedData]:
        """All of them."""
        others = (self.eval, self.test, self.questions)
        return [self.train, *self.mixed, *(rows for rows in others if rows is not None)]


class PlannedPhase(JobModel):
    """One training of a run: its rows, its settings, and what of the model it trains."""

    name: str = ""
    trains: list[Literal["projector", "adapter"]]
    data: DataSettings
    rows: PlannedRows
    training: TrainingSettings


class PlannedLaunch(JobModel):
    """Processes and devices, decided."""

    device: Literal["cuda", "cpu"]
    num_processes: int
    deepspeed: Literal["none", "zero1", "zero2", "zero3"]
    threads_per_process: int
    gpu_indices: list[int] = Field([])
    gpu_uuids: list[str] = Field([])


class PlannedBudget(JobModel):
    """The memory that the guard enforces: on each GPU, or of the process tree on the host."""

    kind: Literal["gpu", "host", "none"]
    limit_bytes: int | None = None
    grace_seconds: float = 60.0


class Plan(JobModel):
    """Everything that decides what a run does."""

    schema_version: int = SCHEMA_VERSION
    job: str
    description: str
    variant: Variant
    engine: Literal["sft"]
    model: PlannedModel
    vision: PlannedVision | None = None
    trust_remote_code: bool
    method: Method
    lora: LoraSettings
    quantization: QuantizationSettings
    prefix: PrefixSettings
    earlier: list[PlannedPhase] = Field([], description="Trainings before the one below")
    phase: str = Field("", description="Name of the last training; empty where it is the only one")
    trains: list[Literal["projector", "adapter"]]
    data: DataSettings
    rows: PlannedRows
    training: TrainingSettings
    evaluation: EvaluationSettings
    tracking: TrackingSettings
    precision: Literal["bf16", "fp16", "fp32"]
    launch: PlannedLaunch
    budget: PlannedBudget
    timeout_minutes: float | None
    substitutions: list[str] = Field([], description="What was taken in place of something else")
    warnings: list[str] = Field([], description="What is likely to go wrong, though allowed")
    python: str = Field(description="The interpreter whose packages train")

    @property
    def hash(self) -> str:
        """sha256 over all that decides the outcome: not over where files happen to lie."""
        record = self.model_dump(
            mode="json", exclude={"python", "description", "evaluation", "tracking", "warnings"}
        )
        for phase in (*record["earlier"], record):
            _forget_places(phase)
        unused = {"lora": ("quantization", "prefix"), "qlora": ("prefix",)}
        for key in unused.get(self.method, ("lora", "quantization")):
            record.pop(key)
        if self.method == "full":
            record.pop("prefix")
        for model in (record["model"], (record["vision"] or {}).get("model")):
            if model and model["kind"] != "folder":
                model.pop("folder")
        for key in ("gpu_indices", "gpu_uuids"):  # the same run on another card
            record["launch"].pop(key)
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def short_hash(self) -> str:
        return self.hash[:7]

    @property
    def trainings(self) -> list[Plan]:
        """A plan for each training of the run, in order, that knows no other."""
        views = [
            self.model_copy(
                update={
                    "earlier": [],
                    "phase": phase.name,
                    "trains": phase.trains,
                    "data": phase.data,
                    "rows": phase.rows,
                    "training": phase.training,
                }
            )
            for phase in self.earlier
        ]
        return [*views, self.model_copy(update={"earlier": []})]

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of the whole run; None where the number of rows decides."""
        steps = [plan.training.max_steps for plan in self.trainings]
        return None if None in steps else sum(step or 0 for step in steps)


def _forget_places(phase: dict[str, Any]) -> None:
    """Take out of a dumped training where its rows lie, since their content is known by hash."""
    rows, data = phase["rows"], phase["data"]
    for source in (rows["train"], *rows["mixed"], rows["eval"], rows["test"], rows["questions"]):
        if source and source["sha256"]:
            source["path"] = Path(source["path"]).suffix  # how it is read, not where it lies
    for key in ("train", "eval", "test", "sample", "questions"):  # resolved into rows
        data.pop(key)
    for source in (data["mix"] or {}).get("sources", []):
        source.pop("rows")
        source.pop("sample")


def make_plan(
    loaded: LoadedJob, facts: Facts, variant: Variant = "train", max_steps: int | None = None
) -> Plan:
    """Decide everything a run of this job does on this host.

    Raises:
        RefusedError: the job asks for devices that the host lacks.
    """
    job = loaded.job
    substitutions: list[str] = []
    device = _device(job.launch.device, facts, substitutions)
    processes = job.launch.num_processes
    if device == "cuda" and processes > len(facts.gpus):
        raise RefusedError(
            f"launch.num_processes is {processes}, but this machine has {len(facts.gpus)} GPU(s)",
            "one training process takes one GPU; lower launch.num_processes",
        )
    # the emptiest cards, the lowest index first where they are alike (to 64 MiB)
    by_use = sorted(facts.gpus, key=lambda gpu: ((gpu.used_bytes or 0) >> 26, gpu.index))
    gpus = by_use[:processes] if device == "cuda" else []
    method = _method(job, facts, substitutions)
    absent = _absent_rows(job, facts) if variant == "smoke" else []
    phases = [
        PlannedPhase(
            name=phase.name,
            trains=phase.trains,
            data=_planned_data(phase, facts) if absent else phase.data,
            rows=_planned_rows(phase, facts, samples=bool(absent)),
            training=_training(phase.training, variant, max_steps),
        )
        for phase in resolved_phases(job)
    ]
    model, vision = _model(facts.model), None
    if job.vision is not None and facts.vision is not None:
        vision = PlannedVision(
            model=_model(facts.vision),
            feature_layer=job.vision.feature_layer,
            feature_select=job.vision.feature_select,
            projector_act=job.vision.projector_act,
        )
    if variant == "smoke":
        stand_in = _stand_in(job, facts, phases[0].rows.train, substitutions)
        model = stand_in or model
        if stand_in and vision:
            vision = vision.model_copy(update={"model": stand_in})
    substitutions += absent
    precision = _precision(job.training.precision, device, facts, substitutions)
    last = phases[-1]
    return Plan(
        job=loaded.name,
        description=job.description,
        variant=variant,
        engine=job.engine,
        model=model,
        vision=vision,
        trust_remote_code=job.trust_remote_code,
        method=method,
        lora=job.lora,
        quantization=job.quantization,
        prefix=job.prefix,
        earlier=phases[:-1],
        phase=last.name,
        trains=last.trains,
        data=last.data,
        rows=last.rows,
        training=last.training,
        evaluation=job.evaluation,
        tracking=_tracking(job.tracking, variant),
        precision=precision,
        launch=PlannedLaunch(
            device=device,
            num_processes=processes,
            deepspeed=job.launch.deepspeed,
            threads_per_process=job.launch.threads_per_process or max(1, facts.cores // processes),
            gpu_indices=[gpu.index for gpu in gpus],
            gpu_uuids=[gpu.uuid for gpu in gpus],
        ),
        budget=_budget(loaded, device, substitutions),
        timeout_minutes=job.timeout_minutes,
        substitutions=substitutions,
        warnings=_warnings(job, facts, phases, precision, model),
        python=facts.python,
    )


def _method(job: Job, facts: Facts, substitutions: list[str]) -> Method:
    if job.method != "qlora" or facts.quantizes is None:
        return job.method
    if not job.quantization.or_lora:
        raise RefusedError(
            f"method qlora: {facts.quantizes}",
            "pip install bitsandbytes; --method lora trains on unquantized weights, which takes "
            "more memory; quantization.or_lora: true lets a job do so by itself",
        )
    substitutions.append(f"plain LoRA in place of QLoRA: {facts.quantizes}")
    return "lora"


def _training(training: TrainingSettings, variant: Variant, steps: int | None) -> TrainingSettings:
    """The settings with their length decided, and for a smoke the same few events always."""
    stages = training.stages
    if variant == "smoke":
        steps = steps or SMOKE_DEFAULT_STEPS
        changes: dict[str, Any] = {"save_from_step": 1, "early_stopping_patience": None}
        if steps == 1:
            changes["warmup_ratio"] = 0.0  # the only step would have a learning rate of 0
        if stages:
            lengths = shrunk([stage.max_steps for stage in stages], steps)
            kept = [(stage, length) for stage, length in zip(stages, lengths, strict=True)]
            changes["stages"] = [
                stage.model_copy(
                    update={
                        "max_steps": length,
                        "warmup_steps": min(stage.warmup_steps, max(0, length - 1)),
                    }
                )
                for stage, length in kept
                if length
            ]
        # with the best kept, one evaluation and save in the middle of it all, at the last step
        every = steps if training.load_best_model_at_end else None
        return training.model_copy(
            update={
                **changes,
                "max_steps": steps,
                "gradient_accumulation_steps": min(
                    training.gradient_accumulation_steps, SMOKE_ACCUMULATION
                ),
                "global_batch_size": None,
                "logging_steps": 1,
                "save_steps": steps,
                "eval_steps": every,
            }
        )
    if stages:
        total = sum(stage.max_steps for stage in stages)
        return training.model_copy(update={"max_steps": min(steps or total, total)})
    return training if steps is None else training.model_copy(update={"max_steps": steps})


def _tracking(tracking: TrackingSettings, variant: Variant) -> TrackingSettings:
    """No server hears of a smoke, and nobody of a dry run, which has no figures."""
    if variant == "train":
        return tracking
    silent: dict[str, Any] = {"report_to": []} if variant == "dry_run" else {}
    return tracking.model_copy(update={"offline": True, **silent})


def shrunk(lengths: list[int], total: int) -> list[int]:
    """`lengths` scaled to sum to `total`: in proportion, at least 1 each where `total` allows."""
    if total <= len(lengths):
        return [1] * total + [0] * (len(lengths) - total)
    spare, whole = total - len(lengths), sum(lengths)
    exact = [spare * length / whole for length in lengths]
    out = [1 + int(part) for part in exact]
    by_rest = sorted(range(len(lengths)), key=lambda i: (-(exact[i] - int(exact[i])), i))
    for index in by_rest[: total - sum(out)]:
        out[index] += 1
    return out


def _absent_rows(job: Job, facts: Facts) -> list[str]:
    """A substitution line for each source of rows that is not here; empty where all are.

    A smoke takes the samples of all sources or of none, so that they fit together.
    """
    lines = []
    complete = True
    for phase in resolved_phases(job):
        prefix = f"{phase.field}data."
        sources = [(f"{prefix}train", phase.data.train, f"{prefix}sample")]
        for index, mixed in enumerate(phase.data.mix.sources if phase.data.mix else []):
            name = f"{prefix}mix.sources.{index}."
            sources.append((f"{name}rows", mixed.rows, f"{name}sample"))
        here = [facts.rows[field].present for field, _, _ in sources]
        here += [
            facts.rows[prefix + name].present
            for name in ("eval", "test", "questions")
            if prefix + name in facts.rows
        ]
        complete = complete and all(here)
        for _, text, sample in sources:
            stand_in = facts.rows.get(sample)
            if stand_in is None or not stand_in.present or stand_in.path is None:
                return []  # nothing to take instead; what is absent is refused, or on the hub
            line = f"{stand_in.path.name} in place of {text}"
            if line not in lines:
                lines.append(line)
    return [] if complete else lines


def _planned_data(phase: ResolvedPhase, facts: Facts) -> DataSettings:
    """The settings without the evaluation and test files, which belong to the rows not here."""
    data = phase.data.model_copy(update={"eval": None, "test": None, "questions": None})
    if data.split is None and phase.data.eval is not None:
        data = data.model_copy(update={"split": SplitSettings(eval=0.1, seed=42)})
    return data


def _planned_rows(phase: ResolvedPhase, facts: Facts, *, samples: bool) -> PlannedRows:
    prefix, data = f"{phase.field}data.", phase.data
    mixed = range(len(data.mix.sources) if data.mix else 0)
    if samples:
        return PlannedRows(
            train=_rows(facts.rows[f"{prefix}sample"]),
            mixed=[_rows(facts.rows[f"{prefix}mix.sources.{i}.sample"]) for i in mixed],
        )

    def optional(name: str) -> PlannedData | None:
        source = facts.rows.get(prefix + name)
        return None if source is None else _rows(source)

    return PlannedRows(
        train=_rows(facts.rows[f"{prefix}train"]),
        mixed=[_rows(facts.rows[f"{prefix}mix.sources.{i}.rows"]) for i in mixed],
        eval=optional("eval"),
        test=optional("test"),
        questions=optional("questions"),
    )


def _warnings(
    job: Job, facts: Facts, phases: list[PlannedPhase], precision: str, model: PlannedModel
) -> list[str]:
    """What is allowed and still likely to disappoint; said before the start."""
    lines = []
    kind = facts.model_type or model.model_type or job.smoke.model_type
    if precision == "fp16" and kind in FP16_OVERFLOWS:
        lines.append(
            f"fp16 on {kind}: its activations are known to overflow in fp16 (NaN loss); take a "
            "card with bf16, or --set training.precision=fp32"
        )
    elif precision == "fp16" and facts.model_dtype == "bfloat16":
        lines.append("fp16 on weights published in bf16: large values can overflow")
    for phase in phases:
        training, place = phase.training, f"{phase.name}: " if phase.name else ""
        steps = training.max_steps
        if steps is None:
            continue
        if not training.stages:
            lines += [place + line for line in beyond_the_end(training, steps)]
    return lines


def _device(wanted: str, facts: Facts, substitutions: list[str]) -> Literal["cuda", "cpu"]:
    cuda_torch = facts.torch_version is not None and "+cpu" not in facts.torch_version
    if wanted == "cuda":
        if not facts.gpus:
            raise RefusedError(
                f"launch.device is cuda, but {facts.gpu_absence}",
                "runner doctor says more; --set launch.device=cpu trains on CPU",
            )
        if not cuda_torch:
            raise RefusedError(
                f"launch.device is cuda, but torch {facts.torch_version} has no CUDA",
                "install torch's CUDA build (plain `pip install torch==2.13.0` from the index)",
            )
        return "cuda"
    if wanted == "auto" and facts.gpus:
        if cuda_torch:
            return "cuda"
        substitutions.append(
            f"CPU in place of {len(facts.gpus)} GPU(s): torch {facts.torch_version} has no CUDA"
        )
    return "cpu"


def _precision(
    wanted: str, device: str, facts: Facts, substitutions: list[str]
) -> Literal["bf16", "fp16", "fp32"]:
    has_bf16 = device == "cpu" or all((gpu.compute_capability or 0) >= 8.0 for gpu in facts.gpus)
    if wanted == "auto":
        return "fp32" if device == "cpu" else "bf16" if has_bf16 else "fp16"
    if wanted == "bf16" and not has_bf16:
        substitutions.append("fp32 in place of bf16: the GPU is older than compute capability 8.0")
        return "fp32"
    if wanted == "fp16" and device == "cpu":
        substitutions.append("fp32 in place of fp16: there is no fp16 training on CPU")
        return "fp32"
    return "bf16" if wanted == "bf16" else "fp16" if wanted == "fp16" else "fp32"


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


def _budget(loaded: LoadedJob, device: str, substitutions: list[str]) -> PlannedBudget:
    budget = loaded.job.budget
    limit = budget.gpu_memory if device == "cuda" else budget.host_memory
    if device == "cpu" and budget.gpu_memory and not budget.host_memory:
        substitutions.append("no memory budget in place of budget.gpu_memory: this is a CPU run")
    kind: Literal["gpu", "host", "none"] = (
        "none" if limit is None else "gpu" if device == "cuda" else "host"
    )
    return PlannedBudget(kind=kind, limit_bytes=limit, grace_seconds=budget.grace_seconds)


def _model(source: ModelSource) -> PlannedModel:
    return PlannedModel(
        kind=source.kind,
        id=source.id,
        revision=source.revision,
        folder=str(source.folder) if source.folder else None,
    )


def _rows(source: DataSource) -> PlannedData:
    return PlannedData(
        kind=source.kind,
        path=str(source.path) if source.path else None,
        id=source.id,
        revision=source.revision,
        sha256=source.sha256,
        size_bytes=source.size_bytes,
    )


def _stand_in(
    job: Job, facts: Facts, rows: PlannedData, substitutions: list[str]
) -> PlannedModel | None:
    """A tiny random model for a smoke whose weights, or image tower, are not on this machine."""
    absent = [source.id for source in (facts.model, facts.vision) if source and not source.present]
    if not absent:
        return None
    model_type = job.smoke.model_type or {"builtin": "llama"}.get(facts.model.kind)
    if model_type is None:
        raise RefusedError(
            f"the weights of {facts.model.id} are not on this machine, and the job does not "
            "say which architecture a stand-in has",
            "add `smoke: {model_type: qwen2}` (transformers' name of the architecture)",
        )
    kind = f"llava-{model_type}" if facts.vision else model_type
    substitutions.append(f"tiny random {kind} in place of {' and '.join(absent)}")
    # its tokenizer is trained on the rows, so another text gives another stand-in
    text = (rows.sha256 or "hub")[:12]
    return PlannedModel(
        kind="standin",
        id=facts.model.id,
        folder=str(facts.cache / "standins" / f"{kind}-{text}"),
        model_type=kind,
    )
