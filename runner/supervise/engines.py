"""What the training processes have said of themselves. Reads the run folder; signals nobody."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from runner import durable
from runner.folder import RunFolder
from runner.guard.enforcer import ProcessTree
from runner.liveness import is_living
from runner.units import MIB

FRESH_SECONDS = 30.0  # an older figure of the trainer's says nothing about now
OVERHEAD_BYTES = 512 * MIB  # CUDA context and libraries, at least (docs: vram, torch's own cap)


class Engines:
    """What the training processes have said of themselves (engine/rank-N.json)."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[int, dict[str, Any]]] = {}

    def statuses(self) -> list[dict[str, Any]]:
        """The processes of this start; records of earlier ones are told by their start time."""
        out = []
        for path in self._folder.engine.glob("rank-*.json"):
            with contextlib.suppress(OSError):
                changed = path.stat().st_mtime_ns
                if self._known.get(path, (0, {}))[0] != changed:
                    self._known[path] = (changed, durable.read_json(path) or {})
                status = self._known[path][1]
                if is_living(status):
                    out.append(status)
        return out

    def pids(self) -> set[int]:
        return {int(status["pid"]) for status in self.statuses()}

    def ready(self, tree: ProcessTree) -> bool:
        """Whether SIGUSR1 is safe: an engine said it handles it, and it is this run's process."""
        handling = {
            int(status["pid"])
            for status in self.statuses()
            if "SIGUSR1" in status.get("handles", [])
        }
        return bool(handling) and handling <= {member.pid for member in tree.members()}


def reported_bytes(folder: RunFolder) -> int | None:
    """The trainer's own count with its overhead, where it is fresh; None where it is not."""
    last = durable.last_jsonl(folder.metrics)
    if last is None or last.get("memory_source") != "torch_max_reserved":
        return None
    fresh = time.time() - float(last.get("time_unix_seconds", 0)) < FRESH_SECONDS
    return int(last["memory_bytes"]) + OVERHEAD_BYTES if fresh else None
