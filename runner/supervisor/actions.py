"""Apply the policy's decisions to a run's processes: send signals, and finally end what is left."""

from __future__ import annotations

import signal
import time

from runner.common.units import format_bytes
from runner.runs.outcome import SentSignal
from runner.supervisor.event_log import EventLog
from runner.supervisor.execute import Tree
from runner.supervisor.guard import policy
from runner.supervisor.ranks import RankStatuses

LINGER_SECONDS = 10.0  # for trainers that outlive the launch script
LAUNCHER_LINGER_SECONDS = 1.0


class ActionExecutor:
    """Carries out what the policy decides, and keeps the list of signals sent."""

    def __init__(self, tree: Tree, engines: RankStatuses, record: EventLog) -> None:
        self._tree, self._engines, self._record = tree, engines, record
        self.signals: list[SentSignal] = []

    def _send(self, number: signal.Signals, pids: set[int], why: str) -> None:
        reached = self._tree.send(number, pids)
        now = round(time.time(), 3)
        self.signals.append(SentSignal(now, number.name, tuple(reached), why))
        self._record.event("signal", f"{number.name} to {reached}: {why}")

    def _members(self) -> set[int]:
        return {member.pid for member in self._tree.members()}

    def act(self, action: policy.Action) -> None:
        """One decision."""
        match action:
            case policy.Warn(used, budget):
                self._record.event(
                    "warning",
                    f"memory {format_bytes(used)} is {used / budget:.0%} of the "
                    f"budget {format_bytes(budget)}",
                )
            case policy.AskCheckpoint(used, budget):
                self._send(
                    signal.SIGUSR1,
                    self._engines.savers(),
                    f"checkpoint asked for at {used / budget:.0%} of the budget",
                )
            case policy.Terminate(cause, used):
                size = f" at {format_bytes(used)}" if used is not None else ""
                # the trainers themselves, which save first; before there are any, whatever there is
                targets = self._engines.pids() or {each.pid for each in self._tree.workers()}
                self._send(signal.SIGTERM, targets, f"{cause.value}{size}")
            case policy.Kill(cause):
                self._send(
                    signal.SIGKILL,
                    self._members(),
                    f"{cause.value}: it has not ended in order, or was asked to twice",
                )
                self._tree.kill_all()
            case policy.Unenforced(blind, why):
                self._record.event(
                    "warning",
                    f"UNENFORCED for {blind:.0f} s: {why}; nothing is stopped for "
                    "memory until this clears",
                )
            case policy.EnforcedAgain():
                self._record.event("notice", "memory is measured again; the budget is enforced")
            case policy.Stuck():
                self._record.event(
                    "warning", "the run outlived SIGKILL: a process hangs in the kernel"
                )
                self._tree.kill_all()

    def clear(self, main: int) -> None:
        """See to it that nothing of the run survives the outcome. `main` is the script's pid."""
        # launchers alone have nothing to save
        seconds = LINGER_SECONDS if self._engines.pids() else LAUNCHER_LINGER_SECONDS
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._members():
            self._tree.reap(leave={main})
            time.sleep(0.05)
        left = self._members()
        if left:
            self._send(signal.SIGKILL, left, "outlived the launch script")
            survivors = self._tree.kill_all()
            if survivors:
                pids = [process.pid for process in survivors]
                self._record.event("warning", f"pids {pids} survived SIGKILL")
        self._tree.reap(leave={main})
