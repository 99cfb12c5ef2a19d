"""One attempt at a run, from start to its end: start, sample, decide, act, record, judge."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from runner.common.process_times import start_ticks
from runner.machine.schedule import Schedule
from runner.plans.base import Plan
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome
from runner.supervisor.actions import ActionExecutor
from runner.supervisor.event_log import EventLog, Peak
from runner.supervisor.execute import Executor, executor_for
from runner.supervisor.guard import policy
from runner.supervisor.outcome import kernel_oom_kills, reach_verdict
from runner.supervisor.ranks import RankStatuses
from runner.supervisor.samplers import (
    choose_sampler,
    say_unseen_peak,
    take_leave,
    with_blindness,
    with_driver_limit,
)
from runner.supervisor.stop_signals import Stop


def attempt(
    folder: RunFolder,
    plan: Plan,
    stop: Stop,
    record: EventLog,
    *,
    resume: bool,
    deadline: float | None,
) -> Outcome:
    """Run the launch script once, guarded to its end; its outcome.

    `deadline`: of the run, by time.monotonic(), where it has one.
    """
    started, began = time.time(), time.monotonic()
    engines, peak = RankStatuses(folder), Peak()
    executor = executor_for(folder, plan, resume=resume)
    tree = executor.tree
    hand = ActionExecutor(tree, engines, record)
    oom_kills = kernel_oom_kills()
    log_start = _size(folder.train_log)
    with contextlib.ExitStack() as stack:
        sampler, nvml, enforcement = choose_sampler(plan, executor, folder, record, stack)
        try:
            executor.start()
        except BaseException:
            executor.clear()  # nothing of a start that failed stays behind
            raise
        enforcement = with_driver_limit(enforcement, plan, nvml, executor)
        record.event(
            "started",
            f"launch.sh is pid {executor.pid}; memory: {enforcement}",
            argv=executor.argv,
            pid=executor.pid,
            start_ticks=start_ticks(executor.pid),
        )
        state = policy.initial(
            plan.budget.limit_bytes, policy.Thresholds(grace_seconds=plan.budget.grace_seconds)
        )
        schedule = Schedule(time.monotonic())
        while True:
            seen = stop.level
            sample = sampler.sample()
            alive = not executor.ended()
            new_peak = peak.see(sample)
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
            if not alive or state.stuck:  # no outcome waits for what hangs in the kernel
                break
            wait = schedule.wait_seconds(time.monotonic(), policy.interval_seconds(state))
            _sleep(wait, executor, stop, seen)
        hand.clear(executor.pid)
        exit_code = executor.exit_code
        for line in executor.clear():
            record.event("warning", line)
        take_leave(sampler, nvml, plan.launch.gpu_indices, peak, record)
        say_unseen_peak(peak, plan.budget.limit_bytes, state.cause, record)
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
        log_start=log_start,
    )
    return replace(
        outcome,
        enforcement=with_blindness(enforcement, state),
        signals=tuple(hand.signals),
        started_unix_seconds=round(started, 3),
        ended_unix_seconds=round(time.time(), 3),
        elapsed_seconds=time.monotonic() - began,
    )


def _size(path: Path) -> int:
    """Bytes of a file, a link not followed; 0 where there is none."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _sleep(seconds: float, executor: Executor, stop: Stop, seen: int) -> None:
    """Sleep, but wake within 50 ms once the run has ended or a stop was asked for."""
    end = time.monotonic() + seconds
    while not executor.ended() and stop.level == seen:
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.05))
