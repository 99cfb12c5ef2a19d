"""Identify the supervisor process of a run with certainty, and signal only that.

Imports the standard library, psutil, runner.common.processes and runner.runs. A run's folder may
contain anything (docs/security.md), so its pid is only a hint: the run's lock has to be held, and
the process has to belong to the folder's owner and be a supervisor of that very run. The signal
goes through a pidfd opened before the checks, so that it reaches the process that was checked.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from runner.common.processes import host_pid, real_uid
from runner.runs.folder import RunFolder
from runner.runs.records import supervisor_of

MODULE = "runner.supervisor"
_MOST_COMMAND_BYTES = 64 * 1024


@dataclass(frozen=True)
class Found:
    """A run's supervisor, or why it is not known."""

    pid: int | None
    """As seen from here."""
    why_not: str = ""
    """In words, to follow the run's name; empty where there is one."""


def find_supervisor(folder: RunFolder) -> Found:
    """The living supervisor of a run."""
    try:
        owner = folder.path.stat().st_uid
    except OSError as error:
        return Found(None, f"can't be looked at: {error.strerror}")
    if not folder.is_supervised():
        return Found(None, "has no supervisor: nobody holds its lock")
    pid = host_pid(supervisor_of(folder))
    if pid is None:
        return Found(
            None,
            "has a supervisor, but its supervisor.json does not say by which process: it only "
            "starts, is of another container, or its record is damaged",
        )
    if real_uid(pid) != owner:
        return Found(None, f"names pid {pid} as its supervisor, which is another user's")
    if not _supervises(pid, folder):
        return Found(None, f"names pid {pid} as its supervisor, which is another program")
    return Found(pid)


def signal_supervisor(folder: RunFolder, number: signal.Signals) -> Found:
    """Send a signal to the supervisor of a run, and to nobody else; whom it reached, or why none.

    Raises PermissionError where it is another user's.
    """
    first = find_supervisor(folder)
    if first.pid is None:
        return first
    gone = Found(None, "has ended this instant")
    try:
        descriptor = os.pidfd_open(first.pid)
    except ProcessLookupError:
        return gone
    try:
        found = find_supervisor(folder)  # again: the descriptor may be of one that took its pid
        if found.pid == first.pid:
            signal.pidfd_send_signal(descriptor, number)
            return found
    except ProcessLookupError:
        return gone
    finally:
        os.close(descriptor)
    return gone


def _supervises(pid: int, folder: RunFolder) -> bool:
    """Whether a process was started as the supervisor of this run.

    By JOB/TIME-HASH, since a container or a link has the folder under another path.
    """
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as stream:
            words = stream.read(_MOST_COMMAND_BYTES).split(b"\0")
    except OSError:
        return False
    tails = tuple(
        os.fsencode(f"/{path.parent.name}/{path.name}")
        for path in (folder.path, folder.path.resolve())
    )
    return MODULE.encode() in words and any(word.endswith(tails) for word in words)
