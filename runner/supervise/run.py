"""One run from start to verdict: start, sample, decide, act, record, judge."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from types import FrameType
from typing import Literal

from runner import durable
from runner.errors import RefusedError
from runner.execute import Executor, executor_for
from runner.folder import RunFolder
from runner.guard import policy
from runner.guard.enforcer import become_subreaper, confirm_left_device
from runner.guard.sampler import Schedule
from runner.liveness import living_engines, start_ticks
from runner.outcome import Outcome
from runner.plan_base import PlanBase
from runner.supervise.engines import Engines
from runner.supervise.hand import Hand
from runner.supervise.measure import choose_sampler, with_driver_limit
from runner.supervise.record import Peak, Record
from runner.supervise.verdict import kernel_oom_kills, reach_verdict

RESERVE_BYTES = 64 * 1024  # given back before the verdict, so that a full disk can't hide it
STUCK_CONTEXT_SECONDS = 5.0


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


def supervise(folder: RunFolder, plan: PlanBase, *, resume: bool) -> Outcome:
    """Run one plan from start to verdict; returns what termination.json says.

    Raises RefusedError where a training process of an earlier start still lives in the folder.
    """
    started = time.time()
    stop = StopRequests()
    become_subreaper()
    living = living_engines(folder)
    if living:
        raise RefusedError(f"pids {living} of an earlier start still train in {folder.path}")
    if resume:
        folder.set_aside(folder.verdicts())
    reserve = folder.path / ".reserve"
    reserve.write_bytes(b"\0" * RESERVE_BYTES)
    ticks = start_ticks(os.getpid())
    durable.write_json(
        folder.supervisor,
        {
            "schema_version": 1,
            "pid": os.getpid(),
            "start_ticks": ticks,
            "started_unix_seconds": round(started, 3),
            "resume": resume,
        },
    )
    executor = executor_for(folder, plan, resume=resume)
    tree = executor.tree
    record, engines, peak = Record(folder), Engines(folder), Peak()
    hand = Hand(tree, engines, record)
    oom_kills = kernel_oom_kills()
    with contextlib.ExitStack() as stack:
        sampler, nvml, enforcement = choose_sampler(plan, tree, folder, record, stack)
        try:
            executor.start()
        except BaseException:
            executor.clear()  # nothing of a start that failed stays behind
            raise
        enforcement = with_driver_limit(enforcement, plan, nvml, executor)
        record.event(
            "started", f"launch.sh is pid {executor.pid}; memory: {enforcement}", argv=executor.argv
        )
        state = policy.initial(
            plan.budget.limit_bytes, policy.Thresholds(grace_seconds=plan.budget.grace_seconds)
        )
        schedule = Schedule(time.monotonic())
        deadline = time.monotonic() + plan.timeout_minutes * 60 if plan.timeout_minutes else None
        used_pids: set[int] = set()
        while True:
            seen = stop.level
            sample = sampler.sample()
            alive = not executor.ended()
            new_peak = peak.see(sample)
            used_pids.update(engines.pids())
            state, actions = policy.advance(
                state,
                policy.Observation.of(
                    sample,
                    handles_checkpoint=engines.ready(tree),
                    alive=alive,
                    stop=seen,
                    timed_out=deadline is not None and time.monotonic() > deadline,
                ),
            )
            record.sample(sample, notable=bool(actions) or new_peak)
            for action in actions:
                hand.act(action)
            while executor.notes:
                record.event("warning", executor.notes.pop(0))
            tree.reap(leave={executor.pid})
            if not alive:
                break
            wait = schedule.wait_seconds(time.monotonic(), policy.interval_seconds(state))
            _sleep(wait, executor, stop, seen)
        hand.clear(executor.pid)
        exit_code = executor.exit_code
        for line in executor.clear():
            record.event("warning", line)
        if nvml is not None and used_pids:
            indices = plan.launch.gpu_indices
            stuck = confirm_left_device(nvml, used_pids, STUCK_CONTEXT_SECONDS, indices)
            if stuck:
                record.event("warning", f"pids {stuck} still hold GPU memory: a stuck context")
    reserve.unlink(missing_ok=True)
    outcome = reach_verdict(
        folder,
        plan,
        exit_code=exit_code,
        start_failure=executor.start_failure,
        cause=state.cause,
        interrupted=stop.interrupted,
        oom_kills=kernel_oom_kills() - oom_kills,
        peak=peak,
        record=record,
    )
    return replace(
        outcome,
        enforcement=enforcement,
        signals=tuple(hand.signals),
        started_unix_seconds=round(started, 3),
        ended_unix_seconds=round(time.time(), 3),
    )


def _sleep(seconds: float, executor: Executor, stop: StopRequests, seen: int) -> None:
    """Sleep, but wake within 50 ms once the run has ended or a stop was asked for."""
    end = time.monotonic() + seconds
    while not executor.ended() and stop.level == seen:
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.05))
