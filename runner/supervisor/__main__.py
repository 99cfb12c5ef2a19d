"""The supervisor's command line: one at a time in a folder, with an outcome whatever happens."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from runner.common import durable, terminal
from runner.common.errors import RefusedError, RunnerError
from runner.engines.render import MAX_PLAN_BYTES, parse_plan
from runner.machine.process_tree import ProcessTree
from runner.plans.base import Plan
from runner.runs.folder import RunFolder
from runner.runs.origin import origin_of
from runner.runs.outcome import Outcome, Reason
from runner.runs.records import newer_records
from runner.supervisor.gpu_lease import GpuLease
from runner.supervisor.notify import tell_end
from runner.supervisor.rendered import render_anew
from runner.supervisor.run import supervise
from runner.supervisor.termination_file import TerminationFile

_PATIENCE_SECONDS = 0.5


def main() -> int:
    """Exit code of the run, as in termination.json."""
    parser = argparse.ArgumentParser(prog="python -m runner.supervisor", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--wait", action="store_true", help="queue for a GPU that is taken")
    parser.add_argument("--share", action="store_true", help="launch.share, whatever the plan says")
    parser.add_argument("--plan", metavar="SHA256", help="of plan.yaml, from who started this")
    arguments = parser.parse_args()
    folder = RunFolder(arguments.folder.absolute())
    cards = GpuLease(folder, wait=arguments.wait, share=arguments.share)
    plan: Plan | None = None
    with contextlib.ExitStack() as stack:  # all is held until the verdict is written
        # a trainer that only looks whether it is held has it for an instant
        try:
            lock = folder.try_lock(patience_seconds=_PATIENCE_SECONDS, on_lost=_stop)
        except OSError as error:
            terminal.say(f"error: {folder.lock} can't be locked: {error.strerror or error}")
            return 3
        if lock is None:
            terminal.say(f"error: {folder.name} already has a supervisor")
            return 3
        stack.enter_context(lock)
        stack.enter_context(cards)
        last_word = stack.enter_context(TerminationFile(folder))
        started, began = time.time(), time.monotonic()
        try:
            newer = newer_records(folder)
            if newer is not None:
                raise RefusedError(f"{folder.name} is left as it is: {newer}")
            plan = trusted_plan(folder, arguments.plan)
            for line in render_anew(folder, plan):
                terminal.say(line)
            outcome = supervise(folder, plan, resume=arguments.resume, cards=cards)
        except RunnerError as error:  # before anything was started; an old outcome stays as it is
            terminal.say("\n".join(error.lines()))
            return error.exit_code
        except Exception as error:
            terminal.say(traceback.format_exc())
            outcome = Outcome(
                Reason.FAILED,
                1,
                f"the supervisor failed: {error}",
                started_unix_seconds=started,
                ended_unix_seconds=time.time(),
                elapsed_seconds=time.monotonic() - began,
            )
            ProcessTree().kill_all()  # a container ends by its lifeline
        last_word.say(outcome)
    if plan is not None:  # GPUs and lock are free again: who is told has no hold on them
        tell_end(folder, plan, outcome)
    return outcome.exit_code


def trusted_plan(folder: RunFolder, sha256: str | None) -> Plan:
    """The plan in a run's folder, known to be this user's own.

    By its hash from who started this supervisor, or, started by hand, by the plan's seal.

    Raises RefusedError where it is another; RunnerError where it can't be read.
    """
    try:
        content = durable.read_record(folder.plan, MAX_PLAN_BYTES)
    except OSError as error:
        raise RunnerError(f"{folder.plan} can't be read: {error.strerror}") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise RefusedError(
            f"{folder.plan} is not the plan that was to be started: it was changed meanwhile",
            "the same command again",
        )
    if sha256 is None and not origin_of(folder.path).is_own:
        raise RefusedError(
            f"{folder.name} {origin_of(folder.path).why}: it is not started from its folder alone",
            "runner train JOB starts it by the job; bash launch.sh runs what is there, unguarded",
        )
    return parse_plan(content, folder.plan)


def _stop(holder: str) -> None:
    """End the run: another supervisor took this one for dead, and has its lock (lease_file)."""
    terminal.say(f"error: the run's lock is another's now ({holder}); this supervisor ends its run")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
