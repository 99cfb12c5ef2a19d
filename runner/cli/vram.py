"""`runner vram JOB`: predict how much memory a job will take, for what, and how sure that is.

Imports no torch, starts nothing and downloads no weights. On a machine without a GPU the figures
are for a GPU with bf16, and the output says so.
"""

from __future__ import annotations

from runner.cli.vram_mgm import print_vram_mgm
from runner.common.output import Output, colour, field
from runner.launch.jobs import is_of_toolkit, load_job
from runner.launch.vram import device_line, predict_plan, vram_plan
from runner.launch.vram_mgm import predict_mgm
from runner.report.prediction import prediction_lines


def show_vram(name: str, sets: list[str], *, as_json: bool) -> int:
    """0; the prediction in lines or as JSON."""
    out = Output(as_json=as_json)
    loaded = load_job(name, sets)
    if is_of_toolkit(loaded):  # predicted by its relative, in two trainings and two more
        return print_vram_mgm(loaded.name, predict_mgm(loaded, out), out)
    plan, facts, assumed = vram_plan(loaded)
    prediction = predict_plan(plan, facts, out)
    budget = plan.budget.limit_bytes
    lines = [
        field("job", f"{loaded.name}: {plan.model.id}, {plan.method}"),
        field("device", assumed or device_line(plan, facts)),
        *prediction_lines(prediction, budget, colour=colour()),
    ]
    record = prediction.model_dump(mode="json")
    told = {"job": loaded.name, "plan_hash": plan.hash, "assumed": assumed, "budget_bytes": budget}
    summed = {
        "process_bytes": prediction.process_bytes,
        "low_bytes": prediction.low_bytes,
        "high_bytes": prediction.high_bytes,
    }
    out.result({**told, **summed, **record}, lines)
    return 0
