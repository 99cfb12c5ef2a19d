"""Outcome: why a run ended and with what figures; the contents of termination.json.

Pure; imports the standard library, the exit codes of runner.common.errors and the records' types.
"""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from runner.common import errors
from runner.runs.record_types import AttemptRecord, FailureRecord, TrainingRecord

SCHEMA_VERSION = 1


class Reason(StrEnum):
    """Why a run ended. `lost` is never written: it is a run without an outcome or a supervisor."""

    COMPLETED = "completed"
    FAILED = "failed"
    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    OVER_BUDGET = "over_budget"
    NON_FINITE_LOSS = "non_finite_loss"
    GPU_LOST = "gpu_lost"
    STOPPED = "stopped"
    TIMEOUT = "timeout"
    LOST = "lost"


@dataclass(frozen=True)
class SentSignal:
    """A signal the supervisor sent, to whom and why."""

    time_unix_seconds: float
    signal: str
    pids: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Outcome:
    """The outcome on a run."""

    reason: Reason
    exit_code: int
    message: str
    budget_bytes: int | None = None
    peak_bytes: int | None = None
    peak_source: str | None = None
    peaks: dict[str, int] = field(default_factory=dict)
    """The largest figure in bytes by each source, side by side: what torch's allocator handed out
    and reserved, what NVML saw, what the driver's accounting kept."""
    peak_step: dict[str, int] = field(default_factory=dict)
    """The step at which a source that knows steps had its largest."""
    predicted_bytes: int | None = None
    """What was predicted before the start for the peak; None where nothing was."""
    advice: tuple[str, ...] = ()
    """Changes that would have fitted, the cheapest first, where memory was why it ended."""
    attempts: tuple[AttemptRecord, ...] = ()
    """Attempts that ran out of memory and were recovered from, in order."""
    enforcement: str = "none"
    signals: tuple[SentSignal, ...] = ()
    checkpoint: str | None = None
    """The newest verified checkpoint, relative to the run folder."""
    steps: int = 0
    max_steps: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    eval_loss: float | None = None
    trainings: tuple[TrainingRecord, ...] = ()
    """Of a run with several: name, steps, max_steps, first_loss and last_loss of each."""
    result: str | None = None
    """The folder of the trained weights, in the run's: adapter, or model where all were trained."""
    adapter_sha256: str | None = None
    adapter_bytes: int | None = None
    trainer_exit_code: int | None = None
    started_unix_seconds: float = 0.0
    ended_unix_seconds: float = 0.0
    elapsed_seconds: float | None = None
    """By a clock that nobody sets, where the supervisor could tell: wall clocks jump."""
    substitutions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        if self.elapsed_seconds is not None:
            return self.elapsed_seconds
        return max(0.0, self.ended_unix_seconds - self.started_unix_seconds)

    def to_record(self) -> dict[str, object]:
        """JSON-ready, schema_version first."""
        record = asdict(self)
        version = record.pop("schema_version")
        del record["elapsed_seconds"]  # it is `seconds`
        return {"schema_version": version, **record, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Evidence:
    """What is known when the trainer's processes are gone."""

    exit_code: int | None
    """Of launch.sh: 0-255, or negative for a signal, as subprocess reports it; None where it was
    lost with the daemon of its container."""
    engine_failure: FailureRecord | None
    """engine/failure.json: {kind, message, step}, where the engine named its own failure."""
    engine_completed: bool
    """The engine said that it reached its last step and saved the adapter."""
    cause: str | None
    """Why the guard ended it (policy.Cause), where it did."""
    engine_phase: str | None
    """The last phase that rank 0 recorded, where it recorded any."""
    checkpoint: str | None
    host_oom_kills: int
    """Processes that the kernel killed for memory on this host since the start."""
    dry_run: bool
    """Nothing was to be trained."""
    interrupted: bool
    """The stop was asked for by Ctrl-C rather than by a signal from elsewhere."""
    start_failure: tuple[str, str] | None = None
    """Why no container came to run, and the way out."""
    by_exit_code: bool = False
    """A user's own script, of which nothing but its exit code is known."""
    log_reason: str | None = None
    """What the log says of why it ended, in a line, where it says so."""


def judge(evidence: Evidence) -> tuple[Reason, int, str]:
    """Reason, the run's exit code and a sentence, from what is known.

    The guard's own cause comes first: what it ended did not fail by itself. A run that had already
    completed when it was asked to stop has completed. Exit codes: docs/exit-codes.md.
    """
    if evidence.start_failure is not None:
        message, hint = evidence.start_failure
        return Reason.FAILED, errors.EXIT_REFUSED, f"{message}; {hint}" if hint else message
    if evidence.by_exit_code and evidence.exit_code == 0 and evidence.cause is None:
        return Reason.COMPLETED, 0, "it ended with exit code 0"
    if evidence.engine_completed and evidence.exit_code in (0, None):
        if evidence.dry_run:
            return Reason.COMPLETED, 0, "dry run: everything was made ready, nothing was trained"
        return Reason.COMPLETED, 0, "all steps done, result saved"
    saved = f"checkpoint {evidence.checkpoint}" if evidence.checkpoint else "no checkpoint"
    if evidence.by_exit_code:
        saved = "what it wrote stays in the run folder"
    over_budget_code = (
        errors.EXIT_OVER_BUDGET_WITH_CHECKPOINT
        if evidence.checkpoint
        else errors.EXIT_OVER_BUDGET_WITHOUT_CHECKPOINT
    )
    if evidence.cause == "over_budget":
        message = f"stopped by the guard over its memory budget; {saved}"
        return Reason.OVER_BUDGET, over_budget_code, message
    if evidence.cause == "gpu_lost":
        return Reason.GPU_LOST, errors.EXIT_GPU_LOST, f"the GPU was lost; {saved}"
    if evidence.cause == "timeout":
        return Reason.TIMEOUT, 128 + signal.SIGTERM, f"its time was up; {saved}"
    if evidence.cause == "stop_requested":
        code = errors.EXIT_INTERRUPTED if evidence.interrupted else 128 + signal.SIGTERM
        return Reason.STOPPED, code, f"stopped on request; {saved}"
    known = 1 if evidence.exit_code is None else evidence.exit_code
    code = known if known >= 0 else 128 - known
    failure = evidence.engine_failure
    if failure is not None and failure.get("kind") == "over_budget":
        return Reason.OVER_BUDGET, over_budget_code, f"{failure.get('message')}; {saved}"
    if failure is not None:
        reason = {
            "cuda_oom": Reason.CUDA_OOM,
            "non_finite_loss": Reason.NON_FINITE_LOSS,
            "host_oom": Reason.HOST_OOM,
        }.get(str(failure.get("kind")), Reason.FAILED)
        code = int(failure.get("exit_code") or code or 1)
        return reason, code, f"{failure.get('message', 'the engine failed')}; {saved}"
    # launchers turn a killed trainer into exit code 1; it is known by its silence
    vanished = evidence.engine_phase not in (None, "completed", "stopped")
    if evidence.host_oom_kills and (vanished or code == 137):
        return Reason.HOST_OOM, 137, f"the kernel killed it for host memory; {saved}"
    if vanished:
        return (
            Reason.FAILED,
            code or 1,
            f"a training process was killed while {evidence.engine_phase}, not by runner (SIGKILL "
            f"from elsewhere, or a crash of native code: see the log); {saved}",
        )
    if evidence.exit_code is None:
        return Reason.FAILED, 1, f"its container ended unseen, the daemon was gone; {saved}"
    if code > 128:
        name = _signal_name(code - 128)
        return Reason.FAILED, code, f"ended by {name}, which runner did not send; {saved}"
    if code == 0:
        return Reason.FAILED, 1, f"the trainer exited before its last step; {saved}"
    told = {126: " (can't be executed)", 127: " (no such program)"}.get(code, "")
    why = f": {evidence.log_reason}" if evidence.log_reason else ""
    return Reason.FAILED, code, f"the trainer exited with code {code}{told}{why}; {saved}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
