"""The supervisor of a GPU run, closed loop, on the NVML stub through the real nvidia-ml-py.

The trainer is a program that writes "its" GPU memory into the stub's state and answers the signals
with the engine's own Control; supervisor, sampler, policy and verdict are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.facts import Facts, Gpu
from runner.folder import create
from runner.jobfile import load_job
from runner.render import render
from runner.resolve import make_plan
from runner.sources import DataSource, ModelSource
from tests.runs.conftest import termination
from tests.testbed import FakeNvml, build_nvml

TRAINER = """
import os, sys, time
from pathlib import Path
from runner import checkpoints, durable
from runner.engine.control import Control, Stopped
from runner.folder import RunFolder

folder, state, scenario = RunFolder(Path(sys.argv[1])), Path(os.environ["NVML_STUB"]), sys.argv[2]

def gpu(own_mib, foreign_mib=0, lost=0):
    lines = ["driver 570.124.06",
             f"gpu 0 GPU-0 81559 {3 + own_mib + foreign_mib} 50 60 300000 {lost} NVIDIA H100",
             f"compute 0 {os.getpid()} {own_mib}"]
    if foreign_mib:
        lines.append(f"compute 0 1 {foreign_mib}")
    new = state.with_suffix(".trainer")
    new.write_text("\\n".join(lines) + "\\n")
    new.replace(state)

def save(step):
    staged = folder.checkpoints / ".staging"
    staged.mkdir()
    (staged / "weights").write_bytes(os.urandom(1000))
    checkpoints.seal(staged)
    checkpoints.publish(staged, folder.checkpoints / f"checkpoint-{step}")

control = Control(folder, 0)
control.install()
control.enter("training", interruptible=False)
own = 2000
for step in range(1, 60):
    if scenario == "grows":
        own += 400
    gpu(own, foreign_mib=60000 if scenario == "neighbour" and step > 5 else 0,
        lost=15 if scenario == "lost" and step > 5 else 0)
    time.sleep(0.1)
    if control.checkpoint_requested or control.stop_requested:
        save(step)
        control.checkpoint_requested = False
    if control.stop_requested:
        control.enter("stopped", interruptible=False)
        os._exit(143)
gpu(0)
state.write_text("".join(state.read_text().splitlines(keepends=True)[:2]))  # the card is left
durable.write_json(folder.engine_result, {"completed": True, "steps": step, "max_steps": step})
control.enter("completed", interruptible=False)
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("nvml-runs"))


IDLE_H100 = ("driver 570.124.06", "gpu 0 GPU-0 81559 3 0 35 70000 0 NVIDIA H100")


def supervise(
    tmp_path: Path, library: Path, scenario: str, first_state: tuple[str, ...] = IDLE_H100
) -> tuple[int, Path, dict[str, Any]]:
    """Run one scenario under a budget of 12 GiB; exit code, folder and termination record."""
    nvml = FakeNvml(library, tmp_path / "nvml.state")
    nvml.set(*first_state)
    loaded = load_job("demo-identity", ["budget.gpu_memory=12GiB", "budget.grace_seconds=10"])
    facts = Facts(
        python=sys.executable,
        cores=2,
        torch_version="2.13.0",
        gpus=(Gpu(0, "GPU-0", "NVIDIA H100", 81559 << 20, 9.0),),
        gpu_absence="",
        model=ModelSource("hub", "some/model", None, None, True),
        rows={
            "data.train": DataSource("file", tmp_path / "rows.jsonl", None, None, "0" * 64, 1, True)
        },
        cache=tmp_path,
    )
    plan = make_plan(loaded, facts)
    assert (plan.launch.device, plan.precision, plan.budget.kind) == ("cuda", "bf16", "gpu")
    folder = create(tmp_path / "runs", plan.job, plan.short_hash, plan.variant, render(plan))
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    folder.launch_script.write_text(
        f'exec "{sys.executable}" "{trainer}" "{folder.path}" {scenario}\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "runner.supervise", str(folder.path)],
        env=nvml.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, folder.path, termination(folder.path)


def test_a_gpu_run_over_its_budget_is_warned_saved_and_stopped(
    tmp_path: Path, library: Path
) -> None:
    code, folder, end = supervise(tmp_path, library, "grows")
    assert code == end["exit_code"] == 75
    assert end["reason"] == "over_budget"
    assert end["peak_source"] == "nvml_pid:nvml"
    assert 12 << 30 < end["peak_bytes"] < 14 << 30
    assert [sent["signal"] for sent in end["signals"]] == ["SIGUSR1", "SIGTERM"]
    assert end["warnings"]
    samples = [json.loads(line) for line in (folder / "memory.jsonl").read_text().splitlines()]
    assert {s["kind"] for s in samples} == {"gpu"}
    assert {s["attribution"] for s in samples if s["own_bytes"]} == {"nvml_pid"}


def test_a_neighbours_memory_is_not_ours(tmp_path: Path, library: Path) -> None:
    code, _, end = supervise(tmp_path, library, "neighbour")
    assert (code, end["reason"]) == (0, "completed")
    assert end["peak_bytes"] == 2000 << 20
    assert end["signals"] == [] and end["warnings"] == []


def test_a_lost_gpu_has_a_verdict_of_its_own(tmp_path: Path, library: Path) -> None:
    code, _, end = supervise(tmp_path, library, "lost")
    assert code == end["exit_code"] == 69
    assert end["reason"] == "gpu_lost"


def test_a_gpu_run_without_nvml_is_not_stopped_and_says_it_is_unenforced(
    tmp_path: Path, library: Path
) -> None:
    code, _, end = supervise(tmp_path, library, "grows", first_state=("init 9",))
    assert (code, end["reason"]) == (0, "completed")
    assert end["enforcement"].startswith("unenforced")
    assert end["peak_bytes"] is None  # host memory never stands in for the GPU's
    assert any("NOT enforced" in warning for warning in end["warnings"])
