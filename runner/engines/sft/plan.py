"""Plan: a Job with its variant, the facts of the host and every path resolved; frozen, hashable.

The native engine's; its siblings are in runner.engines.plan_kinds. Imports pydantic and the job's
settings only. runner.engines.sft.resolve makes a Plan; nothing downstream looks at the Job, the
environment or the clock to decide what to do.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from runner.jobs.data import CleanSettings, DataSettings, TableSettings
from runner.jobs.method import LoraSettings, Method, PrefixSettings, QuantizationSettings
from runner.jobs.model import JobModel
from runner.jobs.training import EvaluationSettings, TrackingSettings, TrainingSettings
from runner.plans.base import Plan, PlanHead
from runner.plans.rows import PlannedRows


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


class PlannedPhase(JobModel):
    """One training of a run: its rows, its settings, and what of the model it trains."""

    name: str = ""
    trains: list[Literal["projector", "adapter"]]
    data: DataSettings
    rows: PlannedRows
    training: TrainingSettings


def _is_day(text: str) -> str:
    if datetime.date.fromisoformat(text).isoformat() != text:
        raise ValueError("a day is written 2026-03-05")
    return text


class SftPlanned(PlanHead):
    """What only a plan of the native engine has."""

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
    deterministic: bool = Field(False, description="Of torch's kernels only those that repeat")
    on_oom: Literal["stop", "recover"] = "stop"
    template_date: Annotated[str, AfterValidator(_is_day)] | None = Field(
        None,
        description="The day that a chat template which writes today's date is told, for all of "
        "the run's life; not hashed",
    )
    recovered_from: str | None = Field(
        None, description="Hash of the plan that ran out of memory, of which this is a step down"
    )


class SftPlan(Plan, SftPlanned):
    """Everything that decides what a run of the native engine does."""

    def deciding(self) -> dict[str, object]:
        """What decides the outcome; rows count by hash, of the methods the one taken."""
        record = super().deciding()
        for key in ("evaluation", "tracking", "on_oom", "recovered_from", "template_date"):
            record.pop(key)
        if not self.deterministic:  # the plans of before there was a choice keep their hashes
            record.pop("deterministic")
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
        return record

    @property
    def trainings(self) -> list[SftPlan]:
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
    # the plans of before there were these fields keep their hashes
    for key, default in (
        ("ignore_keys", []),
        ("special_tokens", "text"),
        ("image_background", "white"),
        ("columns", {}),
        ("table", TableSettings().model_dump(mode="json")),
    ):
        if data[key] == default:
            data.pop(key)
    if data["clean"]["ignore"] == CleanSettings().ignore:
        data["clean"].pop("ignore")
    for source in (rows["train"], *rows["mixed"], rows["eval"], rows["test"], rows["questions"]):
        if source and source["sha256"]:
            source["path"] = Path(source["path"]).suffix  # how it is read, not where it lies
    for key in ("train", "eval", "test", "sample", "questions"):  # resolved into rows
        data.pop(key)
    for source in (data["mix"] or {}).get("sources", []):
        source.pop("rows")
        source.pop("sample")
