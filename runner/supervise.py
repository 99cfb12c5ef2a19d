"""The supervisor of one run: `python -m runner.supervise RUN_FOLDER [--resume]`.

Starts the launch script, samples memory, decides by the policy, acts, records, and writes
termination.json last of all. Runs in a session of its own, so that no closed terminal ends it.
Imports the guard, the executor and the records; no training library.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from runner import checkpoints, durable
from runner.engine.control import SUPERVISOR_VARIABLE, start_ticks
from runner.execute.local import LocalExecutor
from runner.folder import RunFolder
from runner.guard import policy
from runner.guard.enforcer import ProcessTree, become_subreaper, confirm_left_device
from runner.guard.nvml import Nvml, NvmlUnavailable
from runner.guard.records import Sample
from runner.guard.sampler import HostSampler, NvmlSampler, Schedule, take_baseline
from runner.outcome import Evidence, Outcome, Reason, SentSignal, judge
from runner.plan import Plan
from runner.render import read_plan
from runner.units import format_bytes

RECORD_SECONDS = 1.0  # between two lines of memory.jsonl, where nothing happens
LINGER_SECONDS = 10.0  # for processes that outlive the launch script
RESERVE_BYTES = 64 * 1024  # given back before the verdict, so that a full disk can't hide it


class Sampler(Protocol):
    """HostSampler or NvmlSampler."""

    def sample(self) -> Sample: ...


class Record:
    """events.jsonl and memory.jsonl; a full disk loses lines, counted, and never the guard."""

    def __init__(self, folder: RunFolder) -> None:
        self._events = durable.JsonlWriter(folder.events)
        self._memory = durable.JsonlWriter(folder.memory)
        self.dropped = 0
        self.warnings: list[str] = []
        self._last_seconds = -RECORD_SECONDS

    def event(self, kind: str, text: str, **more: Any) -> None:
        """One thing that happened, also said in the supervisor's log."""
        print(f"{time.strftime('%H:%M:%S')} {kind}: {text}", file=sys.stderr, flush=True)
        if kind == "warning":
            self.warnings.append(text)
        self._write(
            self._events,
            {
                "schema_version": 1,
                "time_unix_seconds": round(time.time(), 3),
                "kind": kind,
                "text": text,
                **more,
            },
        )

    def sample(self, sample: Sample, *, notable: bool) -> None:
        """Samples come up to ten times a second; a line is written each second and when notable."""
        if notable or sample.monotonic_seconds - self._last_seconds >= RECORD_SECONDS:
            self._last_seconds = sample.monotonic_seconds
            self._write(self._memory, sample.to_record())

    def _write(self, writer: durable.JsonlWriter, record: dict[str, Any]) -> None:
        try:
            writer.write(record)
        except OSError:
            self.dropped += 1


class StopRequests:
    """Signals to the supervisor: the first asks the run to end in order, the second to end now."""

    def __init__(self) -> None:
        self.level: Literal[0, 1, 2] = 0
        self.interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.level = 1 if self.level == 0 else 2


def supervise(folder: RunFolder, plan: Plan, *, resume: bool) -> Outcome:
    """Run one plan from start to verdict; returns what termination.json says."""
    started = time.time()
    stop = StopRequests()
    become_subreaper()
    if resume:
        folder.set_aside(folder.verdicts())
    reserve = folder.path / ".reserve"
    reserve.write_bytes(b"\0" * RESERVE_BYTES)
    durable.write_json(
        folder.supervisor,
        {
            "schema_version": 1,
            "pid": os.getpid(),
            "start_ticks": start_ticks(os.getpid()),
            "started_unix_seconds": round(started, 3),
            "resume": resume,
        },
    )
    record = Record(folder)
    tree = ProcessTree()
    limits = policy.Thresholds(grace_seconds=plan.budget.grace_seconds)
    oom_kills = _kernel_oom_kills()
    signals: list[SentSignal] = []
    peak = Peak()

    with contextlib.ExitStack() as stack:
        sampler, nvml, enforcement = _sampler(plan, tree, folder, record, stack)
        executor = LocalExecutor(folder, resume=resume)
        executor.start({SUPERVISOR_VARIABLE: f"{os.getpid()}:{start_ticks(os.getpid())}"})
        record.event(
            "started", f"launch.sh is pid {executor.pid}; memory: {enforcement}", argv=executor.argv
        )
        engines = Engines(folder)
        state = policy.initial(plan.budget.limit_bytes, limits)
        schedule = Schedule(time.monotonic())
        deadline = started + plan.timeout_minutes * 60 if plan.timeout_minutes else None
        used_pids: set[int] = set()
        while True:
            seen = stop.level
            sample = sampler.sample()
            alive = executor.exit_code() is None
            new_peak = peak.see(sample)
            used_pids.update(engines.pids())
            state, actions = policy.advance(
                state,
                policy.Observation.of(
                    sample,
                    handles_checkpoint=engines.ready(tree),
                    alive=alive,
                    stop=stop.level,
                    timed_out=deadline is not None and time.time() > deadline,
                ),
            )
            record.sample(sample, notable=bool(actions) or new_peak)
            for action in actions:
                _act(action, tree, engines, record, signals)
            tree.reap(leave={executor.pid})
            if not alive:
                break
            _sleep(
                schedule.wait_seconds(time.monotonic(), policy.interval_seconds(state)),
                executor,
                stop,
                seen,
            )
        _clear(tree, executor.pid, engines, record, signals)
        if nvml is not None and used_pids:
            stuck = confirm_left_device(nvml, used_pids, 5.0, plan.launch.gpu_indices)
            if stuck:
                record.event("warning", f"pids {stuck} still hold GPU memory: a stuck context")
    reserve.unlink(missing_ok=True)
    return _verdict(
        folder,
        plan,
        executor.exit_code() or 0,
        state,
        stop,
        oom_kills,
        peak,
        enforcement,
        signals,
        record,
        started,
    )


class Peak:
    """The largest figure that was the run's own, and where it came from."""

    def __init__(self) -> None:
        self.value: int | None = None
        self.source: str | None = None

    def see(self, sample: Sample) -> bool:
        """Whether this sample is a new peak by more than one percent."""
        own = sample.own_bytes
        if own is None or not sample.attribution.enforceable:
            return False
        return self.offer(own, f"{sample.attribution.value}:{sample.measure or 'trainer'}")

    def offer(self, value: int, source: str) -> bool:
        """Take another source's figure if it is larger."""
        before = self.value or 0
        if value > before:
            self.value, self.source = value, source
        return value > before * 1.01


class Engines:
    """What the training processes have said of themselves (engine/rank-N.json)."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[int, dict[str, Any]]] = {}

    def statuses(self) -> list[dict[str, Any]]:
        """The processes of this start; records of earlier ones are told by their start time."""
        out = []
        for path in self._folder.engine.glob("rank-*.json"):
            with contextlib.suppress(OSError):
                changed = path.stat().st_mtime_ns
                if self._known.get(path, (0, {}))[0] != changed:
                    self._known[path] = (changed, durable.read_json(path) or {})
                status = self._known[path][1]
                if start_ticks(int(status.get("pid", 0))) == status.get("start_ticks"):
                    out.append(status)
        return out

    def pids(self) -> set[int]:
        return {int(status["pid"]) for status in self.statuses()}

    def ready(self, tree: ProcessTree) -> bool:
        """Whether SIGUSR1 is safe: an engine said it handles it, and it is this run's process."""
        handling = {
            int(status["pid"])
            for status in self.statuses()
            if "SIGUSR1" in status.get("handles", [])
        }
        return bool(handling) and handling <= {member.pid for member in tree.members()}


def _sampler(
    plan: Plan, tree: ProcessTree, folder: RunFolder, record: Record, stack: contextlib.ExitStack
) -> tuple[Sampler, Nvml | None, str]:
    """What measures this run, and the level of enforcement in words."""
    budget = plan.budget
    limit = f"budget {format_bytes(budget.limit_bytes)}" if budget.limit_bytes else "no budget"
    if plan.launch.device == "cpu":
        return HostSampler(tree.members), None, f"host memory of the process tree, {limit}"
    try:
        nvml = stack.enter_context(Nvml())
        baseline = take_baseline(nvml, plan.launch.gpu_indices)
    except NvmlUnavailable as error:
        # a GPU run is never measured by host memory instead: it goes on, said to be unguarded
        record.event(
            "warning",
            f"NVML can't be used ({error}): the budget is NOT enforced by the "
            "guard; torch's own cap stays",
        )
        return _Blind(str(error)), None, f"unenforced (no NVML), {limit}"
    for index, reading in baseline.items():
        for process in reading.processes or ():
            record.event(
                "notice",
                f"GPU {index} is shared: pid {process.pid} holds "
                f"{format_bytes(process.used_bytes)}",
            )
    sampler = NvmlSampler(
        nvml, plan.launch.gpu_indices, tree.members, baseline, reported=lambda: _reported(folder)
    )
    return sampler, nvml, f"torch's cap and the NVML watchdog, {limit}"


class _Blind:
    """A GPU run without NVML: nothing is known, and no figure is made up."""

    def __init__(self, why: str) -> None:
        self._why = why

    def sample(self) -> Sample:
        from runner.guard.records import Attribution

        return Sample(
            time.time(),
            time.monotonic(),
            "gpu",
            None,
            Attribution.NONE,
            None,
            None,
            (),
            0,
            self._why,
            None,
        )


def _reported(folder: RunFolder) -> int | None:
    """The trainer's own count with its overhead, where it is fresh; None where it is not."""
    last = durable.last_jsonl(folder.metrics)
    if last is None or last.get("memory_source") != "torch_max_reserved":
        return None
    fresh = time.time() - float(last.get("time_unix_seconds", 0)) < 30
    return int(last["memory_bytes"]) + (512 << 20) if fresh else None


def _act(
    action: policy.Action,
    tree: ProcessTree,
    engines: Engines,
    record: Record,
    signals: list[SentSignal],
) -> None:
    """Carry one decision of the policy out."""

    def send(number: signal.Signals, pids: set[int], why: str) -> None:
        reached = tree.send(number, pids)
        signals.append(SentSignal(round(time.time(), 3), number.name, tuple(reached), why))
        record.event("signal", f"{number.name} to {reached}: {why}")

    match action:
        case policy.Warn(used, budget):
            record.event(
                "warning",
                f"memory {format_bytes(used)} is {used / budget:.0%} of the "
                f"budget {format_bytes(budget)}",
            )
        case policy.AskCheckpoint(used, budget):
            send(
                signal.SIGUSR1,
                engines.pids(),
                f"checkpoint asked for at {used / budget:.0%} of the budget",
            )
        case policy.Terminate(cause, used):
            size = f" at {format_bytes(used)}" if used is not None else ""
            # the trainers themselves, which save first; before there are any, whatever there is
            targets = engines.pids() or {member.pid for member in tree.members()}
            send(signal.SIGTERM, targets, f"{cause.value}{size}")
        case policy.Kill(cause):
            pids = {member.pid for member in tree.members()}
            send(signal.SIGKILL, pids, f"{cause.value}: the grace is over")
            tree.kill_all()
        case policy.Unenforced(blind, why):
            record.event(
                "warning",
                f"UNENFORCED for {blind:.0f} s: {why}; nothing is stopped for "
                "memory until this clears",
            )
        case policy.EnforcedAgain():
            record.event("notice", "memory is measured again; the budget is enforced")
        case policy.Stuck():
            record.event("warning", "the run outlived SIGKILL: a process hangs in the kernel")
            tree.kill_all()


def _clear(
    tree: ProcessTree, main: int, engines: Engines, record: Record, signals: list[SentSignal]
) -> None:
    """Nothing of the run survives the verdict."""
    deadline = time.monotonic() + LINGER_SECONDS
    if not engines.pids():
        deadline = time.monotonic() + 1.0  # only launchers are left; they have nothing to save
    while time.monotonic() < deadline and tree.members():
        tree.reap(leave={main})
        time.sleep(0.05)
    left = {member.pid for member in tree.members()}
    if left:
        reached = tree.send(signal.SIGKILL, left)
        signals.append(
            SentSignal(
                round(time.time(), 3), "SIGKILL", tuple(reached), "outlived the launch script"
            )
        )
        record.event("signal", f"SIGKILL to {reached}: outlived the launch script")
        survivors = tree.kill_all()
        if survivors:
            record.event("warning", f"pids {[p.pid for p in survivors]} survived SIGKILL")
    tree.reap(leave={main})


def _verdict(
    folder: RunFolder,
    plan: Plan,
    exit_code: int,
    state: policy.State,
    stop: StopRequests,
    oom_kills: int,
    peak: Peak,
    enforcement: str,
    signals: list[SentSignal],
    record: Record,
    started: float,
) -> Outcome:
    result = durable.read_json(folder.engine_result) or {}
    checkpoint, skipped = checkpoints.newest_whole(folder.checkpoints)
    for line in skipped:
        record.event("warning", line)
    losses = [line for line in durable.read_jsonl(folder.metrics) if "loss" in line]
    if plan.launch.device == "cuda":
        for metrics in losses:
            peak.offer(int(metrics.get("memory_bytes") or 0), "torch_max_reserved")
    reason, code, message = judge(
        Evidence(
            exit_code=exit_code,
            engine_failure=durable.read_json(folder.engine_failure),
            engine_phase=(durable.read_json(folder.engine_status(0)) or {}).get("phase"),
            engine_completed=bool(result.get("completed")),
            cause=state.cause.value if state.cause else None,
            checkpoint=checkpoint.name if checkpoint else None,
            host_oom_kills=_kernel_oom_kills() - oom_kills,
            interrupted=stop.interrupted,
        )
    )
    if record.dropped:
        record.warnings.append(f"{record.dropped} lines of the records were lost (disk full?)")
    adapter = result.get("adapter") or {}
    return Outcome(
        reason=reason,
        exit_code=code,
        message=message,
        budget_bytes=plan.budget.limit_bytes,
        peak_bytes=peak.value,
        peak_source=peak.source,
        enforcement=enforcement,
        signals=tuple(signals),
        checkpoint=f"checkpoints/{checkpoint.name}" if checkpoint else None,
        steps=int(result.get("steps") or (losses[-1]["step"] if losses else 0)),
        max_steps=result.get("max_steps") or plan.training.max_steps,
        first_loss=losses[0]["loss"] if losses else None,
        last_loss=losses[-1]["loss"] if losses else None,
        eval_loss=result.get("eval_loss"),
        adapter_sha256=adapter.get("sha256") if reason is Reason.COMPLETED else None,
        adapter_bytes=adapter.get("size_bytes") if reason is Reason.COMPLETED else None,
        trainer_exit_code=exit_code,
        started_unix_seconds=round(started, 3),
        ended_unix_seconds=round(time.time(), 3),
        substitutions=tuple(plan.substitutions),
        warnings=tuple(record.warnings),
    )


def _kernel_oom_kills() -> int:
    """Processes the kernel has killed for memory since boot (/proc/vmstat, Linux 4.13)."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0


def _sleep(seconds: float, executor: LocalExecutor, stop: StopRequests, seen: int) -> None:
    """Sleep, but wake within 50 ms once the run has ended or a stop was asked for."""
    end = time.monotonic() + seconds
    while executor.exit_code() is None and stop.level == seen:
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.05))


def main() -> int:
    """Exit code of the run, as in termination.json."""
    parser = argparse.ArgumentParser(prog="python -m runner.supervise", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    folder = RunFolder(arguments.folder.absolute())
    with (folder.path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: {folder.name} already has a supervisor", file=sys.stderr)
            return 3
        started = time.time()
        try:
            outcome = supervise(folder, read_plan(folder.plan), resume=arguments.resume)
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(
                Reason.FAILED,
                1,
                f"the supervisor failed: {error}",
                started_unix_seconds=started,
                ended_unix_seconds=time.time(),
            )
            ProcessTree().kill_all()
        try:
            durable.write_json(folder.termination, outcome.to_record())
        except OSError as error:
            print(f"error: termination.json can't be written: {error}", file=sys.stderr)
        return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
