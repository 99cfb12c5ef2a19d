"""Smoke a job: train it for a few steps, with stand-ins for what is missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from runner.common.output import Output, field
from runner.engines.registry import engine_of
from runner.engines.sft.resolve import SMOKE_DEFAULT_STEPS
from runner.jobs.load import LoadedJob
from runner.launch.calibrate import keep_measurement, predict_smoke
from runner.launch.gpus import preflight
from runner.launch.preflight import place_line
from runner.launch.train import ready_smoke, start_and_follow
from runner.runs.folder import RunFolder
from runner.runs.record_types import TrainingRecord
from runner.runs.records import object_at, read_outcome


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
    trainings: list[TrainingRecord]
    eval_loss: float | None
    peak_bytes: int | None
    peak_source: str | None
    predicted_bytes: int | None
    verdict: str
    """Why the run ended."""
    why: str
    """Why it did not pass; empty where it did."""
    exit_code: int

    def to_record(self) -> dict[str, object]:
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
    end = read_outcome(folder) or {}
    reached = end.get("steps") == plan.planned_steps
    reloaded = _was_reloaded(folder)
    # of a script of the user's own nothing is known but that it ended well
    proven = (reached and reloaded) or engine_of(plan).is_judged_by_exit_code
    passed = code == 0 and end.get("reason") == "completed" and proven
    why = end.get("message") or "there is no outcome" if not passed else ""
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
        trainings=list(end.get("trainings") or ()),
        eval_loss=end.get("eval_loss"),
        peak_bytes=end.get("peak_bytes"),
        peak_source=end.get("peak_source"),
        predicted_bytes=end.get("predicted_bytes"),
        verdict=end.get("reason", "lost"),
        why=why,
        exit_code=code,
    )


def _was_reloaded(folder: RunFolder) -> bool:
    """Whether the engine loaded its result once more, as its result.json says."""
    checks = object_at(folder.engine_result).get("checks")
    reload = checks.get("reload") if isinstance(checks, dict) else None
    return isinstance(reload, dict) and bool(reload.get("loaded"))
