"""A start that is refused leaves the folder as it was: real supervisors, on the NVML stub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runner.runs.folder import RunFolder
from tests.report.laid_runs import lay_run
from tests.support.nvml import fake_nvml, nvml_library
from tests.testbed import H100, FakeNvml

__all__ = ["fake_nvml", "nvml_library"]

MISMATCH = ("init 18", f"gpu 0 GPU-0 {H100}")
EARLIER = {"reason": "stopped", "exit_code": 130, "steps": 7}
PATCHED = """
import sys
from runner.common.errors import RefusedError
from runner.runs.outcome import Outcome, Reason
from runner.engines.sft.engine import SftEngine
from runner.supervisor import run
from runner.supervisor.__main__ import main
started = []
def attempt(folder, plan, *_, **__):
    started.append(plan)
    if len(started) > 1: raise RefusedError("the driver is gone")
    return Outcome(Reason.CUDA_OOM, 1, "out of memory", started_unix_seconds=1.0,
                   ended_unix_seconds=2.0)
run.attempt = attempt
run.advise = lambda *_: ()
SftEngine.step_down = lambda _, plan, outcome, folder: (
    (plan, "a smaller batch") if outcome.reason is Reason.CUDA_OOM else None)
sys.exit(main())
"""


def supervise(
    nvml: FakeNvml, folder: RunFolder, *arguments: str, program: tuple[str, ...] = ()
) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *(program or ("-m", "runner.supervisor")), str(folder.path), *arguments],
        env=nvml.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def contents(folder: RunFolder) -> dict[str, bytes]:
    """All files but the lock and what is appended to."""
    left_out = {folder.lock, folder.events, folder.memory}
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in folder.path.rglob("*")
        if path.is_file() and path not in left_out
    }


@pytest.mark.parametrize("resumed_before", [False, True])
def test_a_refused_resume_keeps_the_old_verdict(
    fake_nvml: FakeNvml, tmp_path: Path, resumed_before: bool
) -> None:
    folder = lay_run(tmp_path / "runs")
    if resumed_before:
        folder.termination.write_text(json.dumps({"reason": "failed"}))
        folder.set_aside([folder.termination])
    folder.termination.write_text(json.dumps(EARLIER))
    folder.supervisor.write_text(json.dumps({"pid": 2**22 - 1, "start_ticks": 1}))
    folder.engine_result.write_text(json.dumps({"completed": False}))
    before = contents(folder)
    fake_nvml.set(*MISMATCH)
    code, said = supervise(fake_nvml, folder, "--resume")
    assert code == 3 and "the NVIDIA driver does not work" in said
    assert contents(folder) == before
    assert folder.earlier.exists() == resumed_before


def test_a_refused_start_leaves_nothing(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "runs")
    before = contents(folder)
    fake_nvml.set(*MISMATCH)
    assert supervise(fake_nvml, folder)[0] == 3
    assert contents(folder) == before


def test_an_attempt_that_is_refused_after_another_has_a_verdict(
    fake_nvml: FakeNvml, tmp_path: Path
) -> None:
    folder = lay_run(tmp_path / "runs")
    folder.termination.write_text(json.dumps(EARLIER))
    fake_nvml.set(f"gpu 0 GPU-0 {H100.replace(' 20000 ', ' 3 ')}")
    code, _ = supervise(fake_nvml, folder, "--resume", program=("-c", PATCHED))
    end = json.loads(folder.termination.read_text())
    assert code == end["exit_code"] == 3
    assert end["reason"] == "failed" and "the driver is gone" in end["message"]
    assert [each["reason"] for each in end["attempts"]] == ["cuda_oom"]
    assert json.loads((folder.earlier / "1" / "termination.json").read_text()) == EARLIER
    assert not (folder.path / ".reserve").exists()
