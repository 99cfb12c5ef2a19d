"""Let a training process be asked to save or stop, and notice that its supervisor is gone.

Standard library and the run's folder only: installed before torch is imported, so that a signal in
the first second already finds a handler. SIGUSR1 asks for a checkpoint at the next step boundary,
SIGTERM (or Ctrl-C by hand) for a checkpoint and the end.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from runner.common import terminal
from runner.common.process_times import boot_id, pid_namespace, start_ticks
from runner.runs.folder import RunFolder
from runner.runs.protocol import SUPERVISOR_BY_LOCK, SUPERVISOR_VARIABLE

STOPPED_EXIT_CODE = 128 + signal.SIGTERM
_LIFELINE_SECONDS = 1.0
_ORPHAN_GRACE_SECONDS = 120.0


class Stopped(BaseException):
    """The end was asked for where there is nothing to save; not an error."""


class Control:
    """The requests that reached this process, and what it says of itself in engine/rank-N.json."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self.folder = folder
        self.rank = rank
        self.checkpoint_requested = False
        self.stop_requested = False
        self.phase = "starting"
        self.planned_steps: int | None = None
        """Steps of the whole run, once they are known."""
        self._interruptible = True

    def install(self) -> None:
        """Take the signals over and say so; then the guard may use them."""
        signal.signal(signal.SIGUSR1, self._on_checkpoint)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        self.enter("loading")
        supervisor = os.environ.get(SUPERVISOR_VARIABLE)
        if supervisor:
            threading.Thread(target=_watch, args=(supervisor, self.folder), daemon=True).start()

    def enter(self, phase: str, *, interruptible: bool = True) -> None:
        """Record the phase; in an interruptible one a stop needs no step boundary."""
        self.phase = phase
        self._interruptible = interruptible
        self.folder.write_json(
            self.folder.engine_status(self.rank),
            {
                "schema_version": 1,
                "rank": self.rank,
                "pid": os.getpid(),
                "start_ticks": start_ticks(os.getpid()),
                "boot_id": boot_id(),
                "pid_namespace": pid_namespace(),
                "phase": phase,
                "planned_steps": self.planned_steps,
                "handles": ["SIGUSR1", "SIGTERM"],
                "time_unix_seconds": round(time.time(), 3),
            },
        )
        if interruptible:
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """End here if the end was asked for and no checkpoint is owed first."""
        if self.stop_requested and not self.checkpoint_requested:
            raise Stopped

    def _on_checkpoint(self, _number: int, _frame: FrameType | None) -> None:
        self.checkpoint_requested = True

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_requested and number == signal.SIGINT:
            os._exit(130)  # asked twice by hand: now
        self.stop_requested = True
        # While weights load nothing is lost by ending at once; but where a checkpoint was asked
        # for first (the guard, over budget) it is owed, and the first step boundary gives it.
        if self._interruptible and not self.checkpoint_requested:
            raise Stopped


def _watch(supervisor: str, folder: RunFolder) -> None:
    """Ask this process to end once the supervisor is gone: nothing trains unguarded."""
    while _is_there(supervisor, folder):
        time.sleep(_LIFELINE_SECONDS)
    terminal.say("runner: the supervisor is gone; saving a checkpoint and ending")
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_GRACE_SECONDS)
    os._exit(STOPPED_EXIT_CODE)


def _is_there(supervisor: str, folder: RunFolder) -> bool:
    """Whether the supervisor lives, by pid and start time, or by the lock that it holds.

    The lock is asked for where there is another pid namespace between the two: it is the same file,
    and the kernel lets go of it with its holder.
    """
    if supervisor != SUPERVISOR_BY_LOCK:
        pid, _, ticks = supervisor.partition(":")
        return start_ticks(int(pid)) == int(ticks)
    return folder.is_supervised()
