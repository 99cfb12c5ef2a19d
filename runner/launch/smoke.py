"""Smoke a job: train it for a few steps, with stand-ins for what is missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.output import Output, field
from runner.engines.registry import engine_of
from runner.engines.sft.resolve import SMOKE_DEFAULT_STEPS
from runner.jobs.load import LoadedJob
from runner.launch.calibrate import keep_measurement, predict_smoke
from runner.launch.gpus import preflight
from runner.launch.preflight import place_line
from runner.launch.train import ready_smoke, start_and_follow


@dataclass(frozen=True)
class SmokeResult:
    """What a smoke showed; JSON-ready by `to_record`."""

    job: str
    run: str
    passed: bool
    substitutions: list[str]
    """What was taken in place of something else."""
    steps: int | None
    first_loss: float | None
    last_loss: float | None
    trainings: list[dict[str, Any]]
    eval_loss: float | None
    peak_bytes: int | None
    peak_source: str | None
    predicted_bytes: int | None
    verdict: str
    """Why the run ended."""
    why: str
    """Why it did not pass; empty where it did."""
    exit_code: int

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def smoke(
    job: LoadedJob,
    out: Output,
    *,
    max_steps: int | None = None,
    runs: Path | None = None,
    wait: bool = False,
    unsafe: bool = False,
) -> SmokeResult:
    """Run a job for a few steps, end to end, and say whether all of its way was gone.

    Raises:
        SpecError, RefusedError: as preparing a run.
    """
    steps = max_steps or SMOKE_DEFAULT_STEPS
    ready = ready_smoke(job, steps, runs, out, wait=wait, unsafe=unsafe)
    plan, facts, folder = ready.plan, ready.facts, ready.folder
    out.say(field("place", place_line(plan, facts)))
    for line in plan.substitutions:
        out.say(field("SUBSTITUTE", line))
    out.say(preflight(plan))
    prediction = predict_smoke(plan, facts, folder, out)
    out.say(field("run", str(folder.path)))
    code = start_and_follow(folder, plan, out, wait=wait)
    end = durable.read_json(folder.termination) or {}
    result = durable.read_json(folder.engine_result) or {}
    reached = end.get("steps") == plan.planned_steps
    reloaded = bool((result.get("checks") or {}).get("reload", {}).get("loaded"))
    # of a script of the user's own nothing is known but that it ended well
    proven = (reached and reloaded) or engine_of(plan).is_judged_by_exit_code
    passed = code == 0 and end.get("reason") == "completed" and proven
    why = end.get("message", "there is no outcome") if not passed else ""
    keep_measurement(plan, facts, folder, prediction, end, out)
    if not passed:
        out.say(field("failed", str(why)))
        out.say(field("log", str(folder.train_log)))
    return SmokeResult(
        job=job.name,
        run=folder.name,
        passed=passed,
        substitutions=list(plan.substitutions),
        steps=end.get("steps"),
        first_loss=end.get("first_loss"),
        last_loss=end.get("last_loss"),
        trainings=end.get("trainings") or [],
        eval_loss=end.get("eval_loss"),
        peak_bytes=end.get("peak_bytes"),
        peak_source=end.get("peak_source"),
        predicted_bytes=end.get("predicted_bytes"),
        verdict=end.get("reason", "lost"),
        why=why,
        exit_code=code,
    )
