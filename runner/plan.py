"""Plan: a Job with its variant, the facts of the host and every path resolved; frozen, hashable.

Pure: values in, values out (imports pydantic, runner.job and the records of runner.facts).
Nothing downstream looks at the Job, the environment or the clock to decide what to do.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from runner.errors import RefusedError
from runner.facts import Facts
from runner.job import DataSettings, JobModel, LoraSettings, TrainingSettings
from runner.jobfile import LoadedJob
from runner.sources import DataSource, ModelSource

SCHEMA_VERSION = 1
SMOKE_DEFAULT_STEPS = 5
Variant = Literal["train", "smoke"]


class PlannedModel(JobModel):
    """Which weights the engine loads."""

    kind: Literal["folder", "hub", "builtin", "standin"]
    id: str
    revision: str | None = None
    folder: str | None = None
    model_type: str | None = Field(None, description="standin only: the architecture")


class PlannedData(JobModel):
    """Which rows one source gives."""

    kind: Literal["file", "hub"]
    path: str | None = None
    id: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None


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
    trust_remote_code: bool
    method: Literal["lora"]
    lora: LoraSettings
    data: DataSettings
    train_rows: PlannedData
    eval_rows: PlannedData | None
    training: TrainingSettings
    precision: Literal["bf16", "fp16", "fp32"]
    launch: PlannedLaunch
    budget: PlannedBudget
    timeout_minutes: float | None
    substitutions: list[str] = Field([], description="What was taken in place of something else")
    python: str = Field(description="The interpreter whose packages train")

    @property
    def hash(self) -> str:
        """sha256 over all that decides the outcome: not over where files happen to lie."""
        record = self.model_dump(mode="json", exclude={"python", "description"})
        for rows in (record["train_rows"], record["eval_rows"]):
            if rows and rows["sha256"]:
                rows["path"] = Path(rows["path"]).suffix  # how it is read, not where it lies
        if record["model"]["kind"] != "folder":
            record["model"].pop("folder")
        for key in ("gpu_indices", "gpu_uuids"):  # the same run on another card
            record["launch"].pop(key)
        for key in ("train", "eval", "sample"):  # resolved into train_rows and eval_rows
            record["data"].pop(key)
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def short_hash(self) -> str:
        return self.hash[:7]


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
    training = job.training
    data = job.data
    model = _model(facts.model)
    train, evaluation = facts.train, facts.eval
    if variant == "smoke":
        steps = max_steps or SMOKE_DEFAULT_STEPS
        # what a smoke does is always the same few steps, with one save and one evaluation
        training = training.model_copy(
            update={
                "max_steps": steps,
                "logging_steps": 1,
                "save_steps": steps,
                "eval_steps": None,
            }
        )
        model, train, evaluation = _stand_ins(loaded, facts, model, substitutions)
        if train is not facts.train and data.eval is not None:
            data, evaluation = data.model_copy(update={"eval": None}), None
    elif max_steps is not None:
        training = training.model_copy(update={"max_steps": max_steps})
    return Plan(
        job=loaded.name,
        description=job.description,
        variant=variant,
        engine=job.engine,
        model=model,
        trust_remote_code=job.trust_remote_code,
        method=job.method,
        lora=job.lora,
        data=data,
        train_rows=_rows(train),
        eval_rows=_rows(evaluation) if evaluation else None,
        training=training,
        precision=_precision(training.precision, device, facts, substitutions),
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
        python=facts.python,
    )


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
        return "bf16" if device == "cuda" and has_bf16 else "fp32"
    if wanted == "bf16" and not has_bf16:
        substitutions.append("fp32 in place of bf16: the GPU is older than compute capability 8.0")
        return "fp32"
    if wanted == "fp16" and device == "cpu":
        substitutions.append("fp32 in place of fp16: there is no fp16 training on CPU")
        return "fp32"
    return "bf16" if wanted == "bf16" else "fp16" if wanted == "fp16" else "fp32"


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


def _stand_ins(
    loaded: LoadedJob, facts: Facts, model: PlannedModel, substitutions: list[str]
) -> tuple[PlannedModel, DataSource, DataSource | None]:
    """A smoke's weights and rows: the job's own where they are here, else stand-ins, said so."""
    job = loaded.job
    train, evaluation = facts.train, facts.eval
    stand_in: str | None = None
    if not facts.model.present:
        model_type = job.smoke.model_type or {"builtin": "llama"}.get(facts.model.kind)
        if model_type is None:
            raise RefusedError(
                f"the weights of {facts.model.id} are not on this machine, and the job does not "
                "say which architecture a stand-in has",
                "add `smoke: {model_type: qwen2}` (transformers' name of the architecture)",
            )
        stand_in = model_type
        substitutions.append(f"tiny random {model_type} in place of {facts.model.id}")
    absent = not train.present or (evaluation is not None and not evaluation.present)
    if absent and facts.sample is not None and facts.sample.path is not None:
        substitutions.append(f"{facts.sample.path.name} in place of {job.data.train}")
        train, evaluation = facts.sample, None
    if stand_in is not None:
        # its tokenizer is trained on the rows, so another text gives another stand-in
        text = (train.sha256 or "hub")[:12]
        folder = facts.cache / "standins" / f"{stand_in}-{text}"
        model = PlannedModel(
            kind="standin", id=facts.model.id, folder=str(folder), model_type=stand_in
        )
    return model, train, evaluation
