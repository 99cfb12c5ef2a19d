"""Predict the memory of a job on the MGM toolkit: its two trainings, and a full finetuning.

Traces the native counterpart, so that the toolkit need not be here. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from runner.common.output import Output
from runner.engines.load import load_job
from runner.engines.mgm.plan import PlannedMgmTraining
from runner.engines.mgm.resolve import make_mgm_plan, mgm_job
from runner.engines.mgm.smoke import STAND_IN
from runner.engines.sft.memory.ask import write_request
from runner.engines.sft.memory.messages import StageAsked
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import ask_engine
from runner.launch.vram import vram_plan
from runner.plans.facts import gather_host
from runner.report.prediction_mgm import FULL, FULL_OFFLOADED
from runner.vram.prediction import Prediction


@dataclass(frozen=True)
class MgmMemory:
    """What the trainings of a job on the toolkit take."""

    profile: str
    assumed: str | None
    """The GPUs that were assumed, in words, where there are none."""
    budget_bytes: int | None
    prediction: Prediction
    record: dict[str, Any]
    """The prediction as the engine answered."""


def predict_mgm(loaded: LoadedJob, out: Output) -> MgmMemory:
    """Predict a job on the toolkit. Raises EngineRefused, RefusedError where it can't be."""
    job = mgm_job(loaded)
    here = job.model_copy(update={"launch": job.launch.model_copy(update={"on": "local"})})
    plan = make_mgm_plan(replace(loaded, job=here), gather_host(here), "train")
    native = load_job(
        STAND_IN,
        [
            *(f"launch.on={job.launch.on}", "launch.deepspeed=zero2", "launch.offload=optimizer"),
            *(f"lora.r={plan.mgm.lora.r}", f"lora.lora_dropout={plan.mgm.lora.lora_dropout}"),
        ],
    )
    relative, _, assumed = vram_plan(native)
    pretrain, finetune = plan.mgm.pretrain, plan.mgm.finetune
    stages: list[StageAsked] = [
        _stage("pretrain", 0, "lora", pretrain),
        _stage("finetune", 1, "lora", finetune),
        {**_stage(FULL, 1, "full", finetune), "rows": 1, "tokens": 1024, "adam": "card"},
        {**_stage(FULL_OFFLOADED, 1, "full", finetune), "rows": 4, "tokens": 2048},
    ]

    record = ask_engine(
        relative,
        out,
        lambda folder: write_request(folder, relative, mgm=stages),
        failed="the memory could not be predicted",
    )
    prediction = Prediction.model_validate(record)
    budget = job.budget.gpu_memory
    return MgmMemory(plan.mgm.profile, assumed, budget, prediction, record)


def _stage(
    name: str, training: int, method: Literal["lora", "full"], planned: PlannedMgmTraining
) -> StageAsked:
    return {
        "name": name,
        "training": training,
        "method": method,
        "rows": planned.per_device_train_batch_size,
        "tokens": planned.model_max_length,
    }
