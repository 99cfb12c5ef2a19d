"""Print what `runner vram` predicts of a job on the MGM toolkit."""

from __future__ import annotations

from typing import Any

from runner.common.output import Output, colour, field
from runner.launch.vram_mgm import MgmMemory
from runner.report.prediction import training_lines
from runner.report.prediction_mgm import explain_full_finetune


def print_vram_mgm(job: str, found: MgmMemory, out: Output) -> int:
    """0; the prediction in lines or as JSON."""
    prediction, budget = found.prediction, found.budget_bytes
    explained = explain_full_finetune(prediction, budget)
    lines = [
        field("job", f"{job}: MGM-2B by its toolkit, profile {found.profile}"),
        field("device", found.assumed or "this machine's GPU"),
    ]
    for memory in prediction.trainings:
        lines += ["", f"{memory.phase}:", *training_lines(memory, budget, colour=colour())]
    lines += ["", *explained]
    lines += [field("note", note) for note in prediction.notes]
    told: dict[str, Any] = {"job": job, "assumed": found.assumed, "budget_bytes": budget}
    out.result({**told, "explanation": explained, **found.record}, lines)
    return 0
