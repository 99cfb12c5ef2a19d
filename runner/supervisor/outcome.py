"""Collect the evidence that a run left behind, and judge its outcome.

Reads files; decides by runner.runs.outcome.judge.
"""

from __future__ import annotations

import os
from pathlib import Path

from runner.common.terminal import clean_line
from runner.engines.progress import planned_trainings
from runner.engines.registry import engine_of
from runner.plans.base import Plan
from runner.provenance.environment import secret_values, without_secrets
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.runs.metrics import loss_lines
from runner.runs.outcome import Evidence, Outcome, Reason, judge
from runner.runs.record_types import LossLine
from runner.runs.records import failure_of, object_at, status_of, valid_adapter, valid_result
from runner.runs.trainings import Training, trainings_of
from runner.supervisor.event_log import EventLog, Peak
from runner.supervisor.guard import policy
from runner.supervisor.log_reason import log_reason
from runner.vram.prediction import read_prediction

TORCH_RESERVED = "torch_max_reserved"
TORCH_ALLOCATED = "torch_max_allocated"
TORCH_PEAKS = (("peak_reserved_bytes", TORCH_RESERVED), ("peak_allocated_bytes", TORCH_ALLOCATED))


def reach_verdict(
    folder: RunFolder,
    plan: Plan,
    *,
    exit_code: int | None,
    start_failure: tuple[str, str] | None,
    cause: policy.Cause | None,
    interrupted: bool,
    oom_kills: int,
    peak: Peak,
    record: EventLog,
    log_start: int = 0,
) -> Outcome:
    """The outcome, without what only the supervisor knows (times, signals, enforcement).

    `exit_code` is the launch script's, None where it was lost; `start_failure` says why nothing
    came to run; `oom_kills` counts the kernel's since the start; `log_start` is how many bytes of
    the log are of earlier starts.
    """
    engine = engine_of(plan)
    result = object_at(folder.engine_result)
    said = valid_result(result)
    checkpoint, skipped = checkpoints.newest_whole(folder.checkpoints)
    for line in skipped:
        record.event("warning", line)
    losses = list(loss_lines(folder.metrics))
    if plan.launch.device == "cuda":
        for metrics in losses:
            _offer_torch(peak, metrics)
        for field, source in TORCH_PEAKS:  # after the last line, too: evaluation, saving
            size = result.get(field)
            if isinstance(size, int) and size > 0:
                peak.offer(size, source)
    reason, code, message = judge(
        Evidence(
            exit_code=exit_code,
            engine_failure=failure_of(folder) or None,
            engine_phase=status_of(folder).get("phase"),
            engine_completed=bool(said.get("completed")),
            cause=cause.value if cause else None,
            checkpoint=checkpoint.name if checkpoint else None,
            host_oom_kills=oom_kills,
            interrupted=interrupted,
            dry_run=plan.variant == "dry_run",
            start_failure=start_failure,
            by_exit_code=engine.is_judged_by_exit_code,
            log_reason=_log_reason(folder, plan, log_start) if exit_code else None,
        )
    )
    trainings = trainings_of(losses, planned_trainings(folder, plan))
    stage = engine.stage(folder)
    for line in stage.warnings if stage else ():
        record.warnings.append(clean_line(line))
    if record.dropped:
        record.warnings.append(f"{record.dropped} lines of the records were lost (disk full?)")
    adapter = valid_adapter(result.get("adapter") if reason is Reason.COMPLETED else None)
    predicted = read_prediction(folder.prediction)
    return Outcome(
        reason=reason,
        exit_code=code,
        message=message,
        budget_bytes=plan.budget.limit_bytes,
        peak_bytes=peak.value,
        peak_source=peak.source,
        predicted_bytes=predicted.process_bytes if predicted else None,
        peaks=peak.by_source,
        peak_step=peak.steps,
        checkpoint=f"checkpoints/{checkpoint.name}" if checkpoint else None,
        steps=said.get("steps") or (losses[-1]["step"] if losses else 0),
        max_steps=said.get("max_steps") or plan.planned_steps or _all_steps(trainings),
        first_loss=losses[0]["loss"] if losses else None,
        last_loss=losses[-1]["loss"] if losses else None,
        eval_loss=said.get("eval_loss"),
        trainings=tuple(one.to_record() for one in trainings),
        result=engine.result(plan, folder) if reason is Reason.COMPLETED else None,
        adapter_sha256=adapter.get("sha256"),
        adapter_bytes=adapter.get("size_bytes"),
        trainer_exit_code=exit_code,
        substitutions=tuple(plan.substitutions),
        warnings=tuple(record.warnings),
    )


def _all_steps(trainings: list[Training]) -> int | None:
    """Steps of all together, where each one's are known."""
    counts = [one.max_steps for one in trainings]
    return sum(count or 0 for count in counts) if counts and None not in counts else None


def _log_reason(folder: RunFolder, plan: Plan, start: int) -> str | None:
    """What the log says of the end, without secrets; of the toolkit's runs, in which stage."""
    names = plan.container.secrets if plan.container else []
    found = log_reason(folder.train_log, start)
    parts = [] if found is None else [without_secrets(found, secret_values(os.environ, names))]
    stage = engine_of(plan).stage(folder)
    if stage is not None and stage.name is not None:
        parts.insert(0, f"in stage {clean_line(stage.name)}")
    return ": ".join(parts) or None


def _offer_torch(peak: Peak, metrics: LossLine) -> None:
    """A line's figures of torch's allocator: the most within its window of steps.

    A user's own script can write anything here.
    """
    if metrics.get("memory_source") != TORCH_RESERVED:
        return
    step = metrics.get("step")
    for size, source in (
        (metrics.get("memory_bytes"), TORCH_RESERVED),
        (metrics.get("allocated_bytes"), TORCH_ALLOCATED),
    ):
        if isinstance(size, int) and size > 0:
            peak.offer(size, source, step if isinstance(step, int) else None)


def kernel_oom_kills() -> int:
    """Processes the kernel has killed for memory since boot (/proc/vmstat, Linux 4.13)."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0
