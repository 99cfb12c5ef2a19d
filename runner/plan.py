"""Plan: a Job with its variant, the facts of the host and every path resolved; frozen, hashable.

Imports pydantic and the job's settings only. runner.resolve makes a Plan; nothing downstream looks
at the Job, the environment or the clock to decide what to do.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from runner.job_data import DataSettings
from runner.job_method import LoraSettings, Method, PrefixSettings, QuantizationSettings
from runner.job_model import JobModel
from runner.job_training import EvaluationSettings, TrackingSettings, TrainingSettings

SCHEMA_VERSION = 1
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
