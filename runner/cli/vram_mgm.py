"""`runner vram` of a job on the MGM toolkit: predict its two trainings, and a full finetuning.

Traces the native counterpart, so that the toolkit need not be here. Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from runner.common.output import Output, colour, field
from runner.common.units import format_bytes
from runner.engines.load import load_job
from runner.engines.mgm.job import MgmJob
from runner.engines.mgm.plan import PlannedMgmTraining
from runner.engines.mgm.resolve import make_mgm_plan
from runner.engines.mgm.smoke import STAND_IN
from runner.engines.sft.memory.ask import write_request
from runner.engines.sft.memory.messages import StageAsked
from runner.jobs.load import LoadedJob
from runner.launch.ask_engine import ask_engine
from runner.launch.vram import vram_plan
from runner.plans.facts import gather_host
from runner.report.prediction import training_lines
from runner.vram.prediction import Prediction, TrainingMemory

FULL = "all weights, AdamW on the GPU"
FULL_OFFLOADED = "all weights as the baseline has it, AdamW on the host"
CARD_BYTES = int(23.6 * 2**30)
"""Of a 24 GB GPU (RTX 3090, 4090), what the driver leaves."""
ENTRIES = 256_000


def show_vram_mgm(loaded: LoadedJob, job: MgmJob, out: Output) -> int:
    """0; the prediction in lines or as JSON."""
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
    lines = [
        field("job", f"{loaded.name}: MGM-2B by its toolkit, profile {plan.mgm.profile}"),
        field("device", assumed or "this machine's GPU"),
    ]
    for memory in prediction.trainings:
        lines += ["", f"{memory.phase}:", *training_lines(memory, budget, colour=colour())]
    lines += ["", *_explained(prediction, budget)]
    lines += [field("note", note) for note in prediction.notes]
    told: dict[str, object] = {"job": loaded.name, "assumed": assumed, "budget_bytes": budget}
    out.result({**told, "explanation": _explained(prediction, budget), **record}, lines)
    return 0


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


def _explained(prediction: Prediction, budget: int | None) -> list[str]:
    """Why a full finetune fails on 24 GB and LoRA fits the budget, in sentences."""
    named = {memory.phase: memory for memory in prediction.trainings}
    full, offloaded = named[FULL], named[FULL_OFFLOADED]
    lines = [
        field(
            "full",
            f"{_batch(full)} takes {format_bytes(full.process_bytes)}, a 24 GB GPU has "
            f"{format_bytes(CARD_BYTES)}: weights, gradients and Adam's moments leave no room for "
            f"the logits, {format_bytes(full.parts.get('logits'))}; one copy of them in bf16 is "
            f"{full.rows} x {full.tokens} x {ENTRIES:,} x 2 bytes = "
            f"{format_bytes(full.rows * full.tokens * ENTRIES * 2)}",
        ),
        field(
            "",
            f"with Adam on the host and the baseline's {_batch(offloaded)} the logits alone take "
            f"{format_bytes(offloaded.parts.get('logits'))} of "
            f"{format_bytes(offloaded.process_bytes)}",
        ),
    ]
    for name in ("pretrain", "finetune"):
        memory = named[name]
        fits = "" if budget is None else _fits(memory, budget)
        kind = "LoRA" if name == "finetune" else "projector and patch info mining"
        lines.append(
            field(
                name,
                f"{kind}, {_batch(memory)}: {format_bytes(memory.process_bytes)} "
                f"({format_bytes(memory.low_bytes)} to {format_bytes(memory.high_bytes)}){fits}",
            )
        )
    return lines


def _fits(memory: TrainingMemory, budget: int) -> str:
    if memory.high_bytes <= budget:
        return f", fits {format_bytes(budget)}"
    if memory.low_bytes > budget:
        return f", does NOT fit {format_bytes(budget)}"
    return f", may or may not fit {format_bytes(budget)}"


def _batch(memory: TrainingMemory) -> str:
    return f"{memory.rows} x {memory.tokens:,} tokens"
