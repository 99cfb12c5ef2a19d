"""Real runs of the real CLI on the real 260K-parameter model and real rows of ../shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("RUNNER_SHARED", ROOT.parent / "shared"))


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

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RUNNER_RUNS")}
        return {**clean, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )

    def call(self, *arguments: str, seconds: float = 240) -> Finished:
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

    def wait_for_step(self, step: int, seconds: float = 90) -> Path:
        """The running run's folder once it has logged `step`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (self.folder / "runs").is_dir() and any((self.folder / "runs").glob("*/*")):
                metrics = lines(self.last / "metrics.jsonl")
                if metrics and metrics[-1]["step"] >= step:
                    return self.last
            time.sleep(0.1)
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


def wait_gone(run: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while processes_of(run):
        assert time.monotonic() < end, [p.cmdline() for p in processes_of(run)]
        time.sleep(0.1)


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real Llama checkpoint of 260,032 parameters."""
    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    return folder


@pytest.fixture(scope="session")
def identity_rows() -> Path:
    path = SHARED / "data" / "lora_identity.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def small_job(stories: Path, identity_rows: Path) -> list[str]:
    """Arguments that make demo-identity a run of seconds."""
    settings = [
        f"model={stories}",
        f"data.train={identity_rows}",
        "data.format=conversations",
        "training.max_steps=6",
        "training.max_length=512",
        "training.learning_rate=2e-3",
        "lora.r=4",
        "budget.host_memory=6GiB",
    ]
    return ["demo-identity", *(part for text in settings for part in ("--set", text))]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    # a name with a space and quotes, as users' folders have
    folder = tmp_path / 'it\'s "a" place'
    folder.mkdir()
    return Workplace(folder)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_job: list[str]) -> Path:
    """One completed run, shared by the tests that only read it (they copy before they change)."""
    place = Workplace(tmp_path_factory.mktemp("finished"))
    done = place.call("train", *small_job)
    assert done.code == 0, done.err
    return place.last
