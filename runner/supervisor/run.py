"""Supervise one run from start to outcome: its GPUs, its attempts, and advice after an overrun."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

from runner.common import terminal
from runner.common.errors import RefusedError
from runner.common.process_times import boot_id, start_ticks
from runner.engines.registry import engine_of
from runner.machine.process_tree import become_subreaper
from runner.plans.base import Plan
from runner.provenance.recorder import ManifestRecorder
from runner.runs import recover as unfinished
from runner.runs.folder import RunFolder
from runner.runs.orphans import living_processes
from runner.runs.outcome import Outcome, Reason
from runner.runs.record_types import AttemptRecord
from runner.supervisor import recovery
from runner.supervisor.advice import advise
from runner.supervisor.attempt import attempt
from runner.supervisor.event_log import EventLog
from runner.supervisor.gpu_lease import GpuLease
from runner.supervisor.stop_signals import StopRequests

RESERVE_BYTES = 64 * 1024  # given back before the outcome, so that a full disk can't hide it


def supervise(folder: RunFolder, plan: Plan, *, resume: bool, cards: GpuLease) -> Outcome:
    """Run one plan from start to outcome; returns what termination.json says.

    Raises RefusedError where a training process of an earlier start still lives in the folder, or
    its GPUs can't be had.
    """
    started = time.time()
    stop = StopRequests()
    become_subreaper()
    living = living_processes(folder)
    if living:
        raise RefusedError(f"pids {living} of an earlier start still live in {folder.path}")
    cleared = unfinished.clear(folder)
    if cleared:  # to supervisor.log; events.jsonl is of what this start does
        terminal.say(f"cleared what a kill had left: {', '.join(cleared)}")
    cards.ask(plan)
    aside = folder.set_aside(folder.verdicts()) if resume else None
    reserve = folder.path / ".reserve"
    try:
        folder.write_file(reserve, b"\0" * RESERVE_BYTES)
        return _supervised(folder, plan, stop, cards, started, resume=resume, reserve=reserve)
    except RefusedError:  # nothing was started: the folder is as it was, its old outcome too
        folder.remove(folder.supervisor)
        if aside is not None:
            _put_back(folder, aside)
        raise
    finally:
        folder.remove(reserve, as_far_as_possible=True)


def _supervised(
    folder: RunFolder,
    plan: Plan,
    stop: StopRequests,
    cards: GpuLease,
    started: float,
    *,
    resume: bool,
    reserve: Path,
) -> Outcome:
    """From the record of this supervisor on. Raises RefusedError where nothing was started."""
    ticks = start_ticks(os.getpid())
    folder.write_json(
        folder.supervisor,
        {
            "schema_version": 1,
            "pid": os.getpid(),
            "start_ticks": ticks,
            "boot_id": boot_id(),
            "started_unix_seconds": round(started, 3),
            "resume": resume,
        },
    )
    record = EventLog(folder)
    folder = replace(folder, told=record.warn)
    never_began = cards.await_turn(stop, record)
    keeper = ManifestRecorder(folder, record.warn)
    if never_began is not None:
        keeper.never_began(plan, never_began)
        return never_began
    plan, started = cards.settle(plan, record), time.time()
    keeper.begin(plan, resume=resume)
    began = time.monotonic()
    try:
        outcome, last = _attempts(folder, plan, stop, record, resume=resume, reserve=reserve)
    except RefusedError:
        keeper.abandon()
        raise
    elapsed = time.monotonic() - began
    outcome = replace(
        outcome,
        started_unix_seconds=round(started, 3),
        elapsed_seconds=elapsed,
        advice=() if stop.level else advise(folder, last, outcome, record),
    )
    keeper.complete(last, outcome, lambda: stop.level > 0)
    return outcome


def _attempts(
    folder: RunFolder,
    plan: Plan,
    stop: StopRequests,
    record: EventLog,
    *,
    resume: bool,
    reserve: Path,
) -> tuple[Outcome, Plan]:
    """Attempts until one is the last: it ended otherwise than by memory, or no step down is left.

    Gives its outcome and its plan.

    `reserve` is given back for what is written at the end.
    """
    deadline = time.monotonic() + plan.timeout_minutes * 60 if plan.timeout_minutes else None
    earlier: list[AttemptRecord] = []
    while True:
        began = time.time()
        try:
            outcome = attempt(folder, plan, stop, record, resume=resume, deadline=deadline)
        except RefusedError as error:
            if not earlier:
                raise
            outcome = Outcome(  # what was tried before it has its outcome
                Reason.FAILED,
                error.exit_code,
                f"it could not continue: {error}",
                started_unix_seconds=round(began, 3),
                ended_unix_seconds=round(time.time(), 3),
            )
        down = None if stop.level else engine_of(plan).step_down(plan, outcome, folder)
        if down is None:
            break
        lower, step = down
        try:
            number = recovery.put_in_place(folder, lower, plan, outcome)
        except OSError as error:
            record.event("warning", f"the run could not be recovered: {error}")
            break
        earlier.append(recovery.attempt_record(number, outcome, step))
        record.event(
            "notice",
            f"{outcome.reason.value}: on from {outcome.checkpoint or 'the start'} with {step}",
        )
        plan, resume = lower, True
    folder.remove(reserve, as_far_as_possible=True)
    return replace(outcome, attempts=tuple(earlier)), plan


def _put_back(folder: RunFolder, aside: Path) -> None:
    """Undo RunFolder.set_aside."""
    for path in folder.verdicts():
        if folder.is_there(aside / path.name):
            folder.move(aside / path.name, path)
    with contextlib.suppress(OSError):  # there are others in it
        aside.rmdir()
        folder.earlier.rmdir()
