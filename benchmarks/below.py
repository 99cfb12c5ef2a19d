"""All processes below this one, ended: supervisors and trainers have sessions of their own.

    python benchmarks/below.py SECONDS COMMAND ...   as timeout(1): 124 where time was up, and then
                                                     nothing that the command started is left

Standard library only; Linux.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER


def adopt_orphans() -> None:
    """Become the parent of processes below whose own parent ends, so that all can be ended."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """Pids below this process that are no zombies, from /proc."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents[int(folder.name)] = int(parent)
    below, level = [], {os.getpid()}
    while level := {pid for pid, parent in parents.items() if parent in level}:
        below += sorted(level)
    return below


def end_descendants() -> int:
    """SIGKILL all below, in whatever session; how many there were at first."""
    first = descendants()
    left = first
    for _ in range(100):
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not (left := descendants()):
            break
        time.sleep(0.1)
    return len(first)


def run_limited(seconds: float, command: list[str]) -> int:
    """The command's exit code; 124 where time was up. Nothing is left below this process."""
    adopt_orphans()
    process = subprocess.Popen(command)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        end_descendants()


if __name__ == "__main__":
    sys.exit(run_limited(float(sys.argv[1]), sys.argv[2:]))
