"""Effects on processes: find everything a run started, signal it, see it gone.

May import the stdlib, psutil and the guard's records and nvml; Linux only. Nothing is signalled
by a remembered number alone: a pid is checked against the process it stood for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import psutil

from runner.guard.nvml import NvmlFailed
from runner.guard.records import DeviceSource

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_SECONDS = 0.02


def become_subreaper() -> None:
    """Have orphaned descendants handed to this process instead of to init.

    Then whatever the run starts stays a descendant of the supervisor, even after a double fork or
    in a session of its own (torchrun's workers), and can be found. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


class Processes:
    """The processes of a run: what can be done to any of them, however they are found."""

    def members(self) -> list[psutil.Process]:
        """The live ones; psutil.Process carries the start time, so a reused pid is another."""
        raise NotImplementedError

    def workers(self) -> list[psutil.Process]:
        """Whom a request to end is sent to where no trainer is known: all members."""
        return self.members()

    def send(self, number: signal.Signals, pids: Iterable[int]) -> list[int]:
        """Send a signal to those of `pids` that are still members; the pids that it reached."""
        wanted = set(pids)
        return [
            process.pid
            for process in self.members()
            if process.pid in wanted and signal_process(process, number)
        ]

    def kill_all(self, timeout_seconds: float = 10.0) -> list[psutil.Process]:
        """SIGKILL every member, and those they started meanwhile, until none is left.

        Returns the survivors at the timeout: processes that hang in the kernel, or that this user
        may not signal.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            alive = self.members()
            for process in alive:
                signal_process(process, signal.SIGKILL)
            if not alive or time.monotonic() >= deadline:
                return alive
            time.sleep(POLL_SECONDS)

    def wait_gone(self, timeout_seconds: float) -> list[psutil.Process]:
        """Wait until no member is left; the survivors at the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            alive = self.members()
            if not alive or time.monotonic() >= deadline:
                return alive
            time.sleep(POLL_SECONDS)


class ProcessTree(Processes):
    """All descendants of this process. Complete only after `become_subreaper`."""

    def __init__(self) -> None:
        self._root = psutil.Process()

    def members(self) -> list[psutil.Process]:
        """The live descendants; those that ended and wait to be reaped are left out."""
        return [child for child in self._root.children(recursive=True) if is_running(child)]

    def reap(self, leave: Collection[int]) -> dict[int, int]:
        """Collect ended orphans that were handed to this process: pid -> wait status.

        `leave` names the children whose exit status someone else waits for (every Popen of this
        process): they are never waited for here.
        """
        collected = {}
        for child in self._root.children():
            if child.pid in leave:
                continue
            with contextlib.suppress(ChildProcessError, psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE:
                    continue
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    collected[pid] = status
        return collected


def confirm_left_device(
    nvml: DeviceSource,
    pids: Collection[int],
    timeout_seconds: float,
    device_indices: Iterable[int] | None = None,
) -> list[int] | None:
    """Wait until NVML lists none of `pids` on any card (or on those named).

    Returns the pids that are still listed at the timeout (a stuck context), [] for none, and None
    where the lists can't be read: then nothing is confirmed. A lost card has nothing to confirm.
    """
    deadline = time.monotonic() + timeout_seconds
    indices = None if device_indices is None else tuple(device_indices)
    while True:
        listed = _listed(nvml, pids, indices)
        if listed == [] or time.monotonic() >= deadline:
            return listed
        time.sleep(POLL_SECONDS)


def _listed(
    nvml: DeviceSource, pids: Collection[int], indices: tuple[int, ...] | None
) -> list[int] | None:
    """Those of `pids` that NVML lists now; None where a card does not say."""
    found: set[int] = set()
    try:
        for index in indices or [index for index, _ in nvml.devices()]:
            reading = nvml.read(index)
            if reading.lost:
                continue
            if reading.processes is None:
                return None
            found.update(process.pid for process in reading.processes if process.pid in pids)
    except NvmlFailed:
        return None
    return sorted(found)


def is_running(process: psutil.Process) -> bool:
    """Whether any thread of a process still runs.

    The state is that of its first thread, which can end while others hang (in a driver, say).
    """
    try:
        if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return True
        return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1
    except (psutil.Error, OSError):
        return False


def signal_process(process: psutil.Process, number: signal.Signals) -> bool:
    """Signal this very process, not one that took its pid; whether the signal went out."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except OSError:  # a kernel or sandbox without pidfds: psutil compares start times just before
        with contextlib.suppress(psutil.Error, OSError):
            process.send_signal(number)
            return True
        return False
    try:
        # The descriptor holds on to one process; if that is the one we mean, it stays so.
        if not process.is_running():
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
