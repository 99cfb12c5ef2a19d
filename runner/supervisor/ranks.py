"""Read the status that training processes wrote. Reads the run folder; signals nobody."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from runner.common import durable
from runner.common.process_times import start_ticks
from runner.common.processes import host_pid
from runner.common.units import MIB
from runner.machine.nvml_sampler import Reported
from runner.runs.folder import RunFolder
from runner.runs.record_types import StatusRecord
from runner.runs.records import number, valid_status
from runner.supervisor.execute import Tree

FRESH_SECONDS = 30.0  # an older figure of the trainer's says nothing about now
OVERHEAD_BYTES = 512 * MIB  # CUDA context and libraries, where the trainer did not measure them


class RankStatuses:
    """What the training processes have said of themselves (engine/rank-N.json)."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[int, StatusRecord]] = {}
        self._here: dict[tuple[int, int], int] = {}  # pid and start time as written -> pid here

    def statuses(self) -> list[StatusRecord]:
        """The processes of this start, pids as seen here; older records are told by start time."""
        out = []
        for path in self._folder.engine.glob("rank-*.json"):
            with contextlib.suppress(OSError):
                changed = path.stat().st_mtime_ns
                if self._known.get(path, (0, {}))[0] != changed:
                    self._known[path] = (changed, valid_status(durable.read_json(path)))
                status = self._known[path][1]
                pid = self._pid_here(status)
                if pid is not None:
                    here = status.copy()
                    here["pid"] = pid
                    out.append(here)
        return out

    def _pid_here(self, status: StatusRecord) -> int | None:
        """The pid on this side; a container's is looked for once, since all processes are asked."""
        key = (status.get("pid", 0), status.get("start_ticks", 0))
        pid = self._here.get(key)
        if pid is None:
            pid = host_pid(status)
            if pid is not None:
                self._here[key] = pid
        return pid if pid is not None and start_ticks(pid) == key[1] else None

    def pids(self) -> set[int]:
        return {int(status["pid"]) for status in self.statuses()}

    def savers(self) -> set[int]:
        """Those that said they handle SIGUSR1; any other process would be ended by it."""
        return {
            int(status["pid"])
            for status in self.statuses()
            if "SIGUSR1" in status.get("handles", [])
        }

    def ready(self, tree: Tree) -> bool:
        """Whether SIGUSR1 is safe: an engine said it handles it, and it is this run's process."""
        savers = self.savers()
        return bool(savers) and all(tree.member(pid) is not None for pid in savers)


def reported_bytes(folder: RunFolder, since_unix_seconds: float) -> Reported | None:
    """The trainer's own count with its overhead, and when; None where it says nothing of now.

    What was said before `since_unix_seconds` is an earlier start's, whose processes are gone; both
    it and what is fresh are by the clock as it is set now, so after a jump the next line counts.
    """
    last = durable.last_jsonl(folder.metrics)
    if last is None or last.get("memory_source") != "torch_max_reserved":
        return None
    # a user's own script can write anything here
    held, said = last.get("memory_bytes"), last.get("time_unix_seconds") or 0
    outside = last.get("memory_outside_bytes") or 0
    if not (number(held) and number(said) and number(outside)):
        return None
    if said < since_unix_seconds or abs(time.time() - said) >= FRESH_SECONDS:
        return None
    return int(held) + max(OVERHEAD_BYTES, int(outside)), float(said)
