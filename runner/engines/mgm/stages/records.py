"""What the stages tell the host of a run: losses as they come, and why a stage failed.

Lines of metrics.jsonl and engine/failure.json, as runner's own engine writes them; steps count on
through both trainings. Standard library only; Python 3.10.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

if __package__:
    from .whole import write_whole
else:  # in a run folder the scripts lie beside each other
    from whole import write_whole  # type: ignore[import-not-found, no-redef]

RUN = Path(__file__).resolve().parent.parent
"""The run folder, whose mgm/ this script lies in."""


class Metrics:
    """metrics.jsonl of a run, for one of its trainings."""

    def __init__(self, path: Path, phase: str) -> None:
        self._path, self._phase = path, phase
        self._before = 0  # steps of the training before this one

    def begin(self, done: int) -> None:
        """Start, or go on after `done` steps: what was logged beyond them is trained again."""
        lines = _lines(self._path)
        earlier = [line for line in lines if line.get("phase") != self._phase]
        self._before = max((_step(line) for line in earlier), default=0)
        kept = [
            line
            for line in lines
            if line.get("phase") != self._phase or _step(line) <= self._before + done
        ]
        if len(kept) < len(lines):
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, step: int, loss: float, **more: object) -> None:
        """One logged step, counted within this training."""
        line = {
            "schema_version": 1,
            "time_unix_seconds": round(time.time(), 3),
            "step": self._before + step,
            "phase": self._phase,
            "loss": loss,
            **{name: value for name, value in more.items() if value is not None},
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def fail(kind: str, message: str, run: Path = RUN) -> None:
    """engine/failure.json, by which the supervisor names the end, where it can be written.

    The first to say so is right: what other ranks and later commands say follows from it.
    """
    if (run / "engine" / "failure.json").exists():
        return
    record = {"schema_version": 1, "rank": 0, "kind": kind, "message": message, "exit_code": 1}
    try:
        (run / "engine").mkdir(exist_ok=True)
        write_whole(run / "engine" / "failure.json", json.dumps(record, indent=1) + "\n")
    except OSError as error:
        print(f"the failure can't be recorded: {error}", flush=True)


def clear_failure(run: Path = RUN) -> None:
    """Remove what an earlier start said of its failure."""
    with contextlib.suppress(OSError):
        (run / "engine" / "failure.json").unlink(missing_ok=True)


def tell_stage(run: Path = RUN, **changes: object) -> None:
    """Put `changes` into engine/stages.json, by which it is seen from outside how far a run is.

    Its keys: stage (the one that runs), trainings (name -> optimizer steps), saves (whether a stop
    of this stage saves a checkpoint), warnings. `trainings` is added to, the others replaced.
    """
    path = run / "engine" / "stages.json"
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        record = {}
    if not isinstance(record, dict):
        record = {}
    if "trainings" in changes:
        told = changes["trainings"]
        known = record.get("trainings", {})
        changes["trainings"] = {**known, **told} if isinstance(told, dict) else known
    if "stage" in changes:
        changes.setdefault("saves", False)
    try:
        (run / "engine").mkdir(exist_ok=True)
        write_whole(path, json.dumps({"schema_version": 1, **record, **changes}, indent=1) + "\n")
    except OSError as error:
        print(f"the stage can't be recorded: {error}", flush=True)


def _step(line: dict[str, object]) -> int:
    """Of a line that a training has written. Raises ValueError where it says none."""
    step = line.get("step")
    if not isinstance(step, int):
        raise ValueError(f"a line without a step: {line}")
    return step


def _lines(path: Path) -> list[dict[str, object]]:
    """The whole lines of a JSONL file; one in mid-write, of a killed process, is left out."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line[-1] == "\n"]
    return [json.loads(line) for line in whole]
