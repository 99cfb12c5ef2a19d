"""Run the job's `on_end` command with the outcome on stdin, once a run has ended.

Imports the standard library, runner.runs.folder, runner.runs.outcome and runner.plans.base. It runs
after the outcome was written and the GPUs were released, and can change neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from runner.plans.base import Plan
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome
from runner.supervisor.event_log import EventLog

LIMIT_SECONDS = 60.0


def tell_end(folder: RunFolder, plan: Plan, outcome: Outcome) -> None:
    """Run the plan's on_end, where it has one; what goes wrong becomes a warning in events.jsonl.

    It gets as JSON on stdin: what termination.json says, with run, folder, job and variant. Its
    output goes to the supervisor's log.
    """
    if plan.on_end is None:
        return
    told = {
        "run": folder.name,
        "folder": str(folder.path),
        "job": plan.job,
        "variant": plan.variant,
        **outcome.to_record(),
    }
    wrong = run_command(plan.on_end, json.dumps(told, ensure_ascii=False), folder.path)
    if wrong is not None:
        with contextlib.suppress(OSError):  # the folder may be gone by now, or the disk full
            EventLog(folder).event("warning", f"on_end {wrong}")


def run_command(
    command: str, text: str, cwd: Path, *, limit_seconds: float = LIMIT_SECONDS
) -> str | None:
    """`bash -c COMMAND` with `text` on stdin; what went wrong in a few words, None for nothing.

    It has a process group of its own, which is killed when its time is up.
    """
    try:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the command
        return f"could not be started: {error}"
    try:
        process.communicate(text.encode(), timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"took over {limit_seconds:g} s and was killed"
    if process.returncode < 0:
        return f"was ended by signal {-process.returncode}"
    return f"ended with exit code {process.returncode}" if process.returncode else None
