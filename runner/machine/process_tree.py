"""Find every process that a run started, signal it, see it gone.

May import the stdlib, psutil and this package's readings, nvml and proc; Linux only. Nothing is
signalled by a remembered number alone: a pid is checked against its process's start time.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import psutil

from runner.machine.nvml import NvmlFailed
from runner.machine.proc import ProcessRegistry, descendants, descends, tells_children
from runner.machine.readings import DeviceSource

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_SECONDS = 0.02
SEARCH_SECONDS = 0.9  # between two searches for new descendants: each sample where one is a second


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

    def watched(self, search_seconds: float = SEARCH_SECONDS) -> list[psutil.Process]:
        """The live ones, for who asks at each sample; may lack what began within that time."""
        return self.members()

    def member(self, pid: int) -> psutil.Process | None:
        """The live member with this pid, however new it is."""
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

        Returns those left at the timeout: processes that hang in the kernel, or that this user may
        not signal.
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
        """Wait until no member is left; the orphan processes at the timeout."""
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
        self._roll = ProcessRegistry()
        self._tells_children = tells_children()
        self._searched = -math.inf  # by time.monotonic()

    def members(self) -> list[psutil.Process]:
        """The live descendants; those that ended and wait to be reaped are left out."""
        return [child for child in self._root.children(recursive=True) if is_running(child)]

    def watched(self, search_seconds: float = SEARCH_SECONDS) -> list[psutil.Process]:
        """As `members`, but a search for new ones, which reads much of /proc, only so often.

        Who was below this process stays so, whoever adopts it: one found before needs no search.
        """
        alive = self._roll.living()
        now = time.monotonic()
        if alive and now - self._searched < search_seconds:
            return alive
        self._searched = now
        if self._tells_children:
            found = descendants(self._root.pid)
        else:
            found = {child.pid for child in self._root.children(recursive=True)}
        for pid in found:
            if pid not in self._roll and (process := self._roll.enter(pid)) is not None:
                alive.append(process)
        return alive

    def member(self, pid: int) -> psutil.Process | None:
        """The live descendant with this pid: asked of it and its parents alone."""
        process = self._roll.get(pid)
        if process is not None:
            return process
        since = descends(pid, self._root.pid)
        if since is None or not psutil.pid_exists(pid):  # not where the number is a thread's
            return None
        return self._roll.enter(pid, since)

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
    processes: Mapping[int, psutil.Process | None],
    timeout_seconds: float,
    device_indices: Iterable[int] | None = None,
) -> list[int] | None:
    """Wait until NVML lists none of `processes` (by pid) on any GPU (or on those named).

    Returns the pids that are still listed at the timeout (a stuck context), [] for none, and None
    where the lists can't be read: then nothing is confirmed. A lost GPU has nothing to confirm.
    A pid that another living process has by now is that one's; where a process is None, because
    only its pid was ever known, every living one is another.
    """
    deadline = time.monotonic() + timeout_seconds
    indices = None if device_indices is None else tuple(device_indices)
    while True:
        listed = _listed(nvml, processes, indices)
        if listed == [] or time.monotonic() >= deadline:
            return listed
        time.sleep(POLL_SECONDS)


def _listed(
    nvml: DeviceSource,
    processes: Mapping[int, psutil.Process | None],
    indices: tuple[int, ...] | None,
) -> list[int] | None:
    """The pids of `processes` that NVML lists now; None where a GPU does not say."""
    found: set[int] = set()
    try:
        for index in indices or [index for index, _ in nvml.devices()]:
            reading = nvml.read(index)
            if reading.lost:
                continue
            if reading.processes is None:
                return None
            for pid in (each.pid for each in reading.processes):
                if pid in processes and not _is_anothers(pid, processes[pid]):
                    found.add(pid)
    except NvmlFailed:
        return None
    return sorted(found)


def _is_anothers(pid: int, process: psutil.Process | None) -> bool:
    """Whether a pid belongs by now to a living process that is not the one meant."""
    return psutil.pid_exists(pid) and not (process is not None and process.is_running())


def is_running(process: psutil.Process) -> bool:
    """Whether any thread of this very process still runs, and not of one that took its pid.

    The state is that of its first thread, which can end while others hang (in a driver, say).
    """
    try:
        if not process.is_running():
            return False
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
