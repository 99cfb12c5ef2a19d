"""A folder to call the real command line in, what it answered, and what its runs left.

May import the standard library, psutil and pytest; nothing of runner.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

STEP_SECONDS = 1800.0
"""How long a step, an end or a file is waited for: only what has failed takes as long."""


@dataclass(frozen=True)
class Finished:
    """A CLI call that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _hear_ctrl_c() -> None:
    """A shell has what it starts in the background ignore SIGINT, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Workplace:
    """A folder to call `runner` in, with its own runs/."""

    folder: Path
    python: str = field(default=sys.executable, kw_only=True)
    """What it is called with, and so what trains: see stub_trainer."""
    stub: dict[str, str] = field(default_factory=dict, kw_only=True)
    """STUB_* variables of a stub trainer."""

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RUNNER_RUNS")}
        return {**clean, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **self.stub}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "-m", "runner", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )

    def call(self, *arguments: str, seconds: float = STEP_SECONDS) -> Finished:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"runner {' '.join(arguments)} took over {seconds} s\n{out}\n{err}")
        assert "Traceback" not in err, err
        return Finished(process.returncode, out, err)

    @property
    def last(self) -> Path:
        """The newest run folder."""
        runs = [p for p in (self.folder / "runs").glob("*/*") if p.is_dir()]
        return max(runs, key=lambda path: path.stat().st_ctime_ns)

    def wait_for_step(self, step: int, seconds: float = STEP_SECONDS) -> Path:
        """The running run's folder once it has logged `step`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (self.folder / "runs").is_dir() and any((self.folder / "runs").glob("*/*")):
                metrics = lines(self.last / "metrics.jsonl")
                if metrics and metrics[-1]["step"] >= step:
                    return self.last
                if (self.last / "termination.json").exists():
                    told = (self.last / "logs" / "train.log").read_text()[-3000:]
                    pytest.fail(f"it ended before step {step}: {termination(self.last)}\n{told}")
            time.sleep(0.05)
        pytest.fail(f"step {step} was not reached in {seconds} s")


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole records of a JSONL file that may be in mid-write."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def termination(run: Path) -> dict[str, Any]:
    return json.loads((run / "termination.json").read_text())


def processes_of(run: Path) -> list[psutil.Process]:
    """Processes that have the run folder in their command line or as their working folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            text = " ".join(process.info["cmdline"] or [])
            if str(run) in text and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_gone(run: Path, seconds: float = STEP_SECONDS) -> None:
    end = time.monotonic() + seconds
    while processes_of(run):
        assert time.monotonic() < end, [p.cmdline() for p in processes_of(run)]
        time.sleep(0.05)
