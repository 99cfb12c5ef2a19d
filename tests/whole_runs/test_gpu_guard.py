"""The supervisor of a GPU run, closed loop, on the NVML stub through the real nvidia-ml-py.

The trainer is a program that writes "its" GPU memory into the stub's state and answers the signals
with the engine's own Control; supervisor, sampler, policy and verdict are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.facts import Facts
from runner.engines.sft.resolve import make_plan
from runner.plans.facts import Gpu
from runner.plans.sources import DataSource, ModelSource
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from tests.support.workplace import termination
from tests.testbed import FakeNvml, build_nvml

pytestmark = pytest.mark.e2e

TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
from runner.runs import checkpoints
from runner.common import durable
from runner.engines.sft.inside.control import Control, Stopped
from runner.runs.folder import RunFolder

folder, state, scenario = RunFolder(Path(sys.argv[1])), Path(os.environ["NVML_STUB"]), sys.argv[2]

def gpu(own_mib, foreign_mib=0, lost=0):
    lines = ["driver 570.124.06",
             f"gpu 0 GPU-0 81559 {3 + own_mib + foreign_mib} 50 60 300000 {lost} NVIDIA H100",
             f"compute 0 {os.getpid()} {own_mib}"]
    if foreign_mib:
        lines.append(f"compute 0 1 {foreign_mib}")
    if scenario == "accounted":
        lines.append(f"accounting 0 {os.getpid()} 5000")
    if scenario == "unlisted":
        lines.append("no DeviceGetComputeRunningProcesses_v3")
    new = state.with_suffix(".trainer")
    new.write_text("\\n".join(lines) + "\\n")
    new.replace(state)

def save(step):
    staged = folder.checkpoints / ".staging"
    staged.mkdir()
    (staged / "weights").write_bytes(os.urandom(1000))
    checkpoints.seal(staged)
    checkpoints.publish(staged, folder.checkpoints / f"checkpoint-{step}")

def say(step, reserved_mib, allocated_mib):
    with folder.metrics.open("a") as lines:
        lines.write(json.dumps({"step": step, "loss": 1.0, "memory_source": "torch_max_reserved",
            "memory_bytes": reserved_mib << 20, "allocated_bytes": allocated_mib << 20,
            "time_unix_seconds": time.time()}) + "\\n")

def leave():
    "The card is left, as a driver says a moment after the last process."
    if scenario not in ("dies", "hangs", "sticks"):
        gpu(0)
        lines = state.read_text().splitlines(keepends=True)
        state.write_text("".join(line for line in lines if not line.startswith("compute")))

control = Control(folder, 0)
control.install()
if scenario in ("stubborn", "tight"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.fork() or time.sleep(600)  # and its child does so, too
control.enter("training", interruptible=False)
own = 2000
# what the guard is to end goes on until it does
endless = ("grows", "unlisted", "lost", "stubborn", "tight", "hangs")
steps = 6000 if scenario in endless else {"dies": 250}.get(scenario, 60)
for step in range(1, steps):
    if scenario in ("grows", "unseen", "stubborn", "tight", "unlisted"):
        own = min(own + 400, 13000)
    foreign = {"neighbour": 60000 if step > 5 else 0, "tight": 81559 - 512 - 100 - own}
    if scenario not in ("dies", "hangs") or step < 5:
        gpu(own, foreign.get(scenario, 0), lost=15 if scenario == "lost" and step > 5 else 0)
    elif scenario == "dies" and step == 5:
        state.unlink()
    elif step == 5:  # what reads the state from here on waits forever, inside of the library
        os.mkfifo(state.with_suffix(".pipe"))
        state.with_suffix(".pipe").replace(state)
    if scenario == "accounted":
        say(step, 4000 if step == 7 else 1000, 3500 if step == 9 else 900)
    if scenario == "unlisted":
        say(step, own, own)
    time.sleep(0.1)
    if control.checkpoint_requested or control.stop_requested:
        save(step)
        control.checkpoint_requested = False
    if control.stop_requested:
        control.enter("stopped", interruptible=False)
        leave()
        os._exit(143)
leave()
durable.write_json(folder.engine_result, {"completed": True, "steps": step, "max_steps": step})
control.enter("completed", interruptible=False)
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("nvml-runs"))


IDLE_H100 = ("driver 570.124.06", "gpu 0 GPU-0 81559 3 0 35 70000 0 NVIDIA H100")


def supervise(
    tmp_path: Path,
    library: Path,
    scenario: str,
    first_state: tuple[str, ...] = IDLE_H100,
    grace_seconds: int = 10,
) -> tuple[int, Path, dict[str, Any]]:
    """Run one scenario under a budget of 12 GiB; exit code, folder and termination record."""
    folder, process = start(tmp_path, library, scenario, first_state, grace_seconds)
    told, said = process.communicate(timeout=1800)
    assert "Traceback" not in said, said
    assert not told
    return process.returncode, folder.path, termination(folder.path)


def interpreter(tmp_path: Path, scenario: str) -> Path:
    """What the plan names as the Python that trains: it plays the scenario in place of the engine.

    Not a launch script of the test's own: a supervisor renders that anew.
    """
    trainer, python = tmp_path / "trainer.py", tmp_path / "python"
    trainer.write_text(TRAINER)
    python.write_text(
        f"""#!/bin/bash
[[ $1 == -c ]] && exec "{sys.executable}" "$@"  # asked for its packages
[[ $* == *--prepare* ]] || exec "{sys.executable}" "{trainer}" "$PWD" {scenario}
"""
    )
    python.chmod(0o755)
    return python


def start(
    tmp_path: Path,
    library: Path,
    scenario: str,
    first_state: tuple[str, ...] = IDLE_H100,
    grace_seconds: int = 10,
) -> tuple[RunFolder, subprocess.Popen[str]]:
    """A supervisor that has just been started, on a card as it is told to be."""
    nvml = FakeNvml(library, tmp_path / "nvml.state")
    nvml.set(*first_state)
    budget = ["budget.gpu_memory=12GiB", f"budget.grace_seconds={grace_seconds}"]
    loaded = load_job("demo-identity", budget)
    facts = Facts(
        python=str(interpreter(tmp_path, scenario)),
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
    folder = create_run(tmp_path / "runs", plan.job, plan.short_hash, plan.variant, render(plan))
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.supervisor", str(folder.path)],
        env=nvml.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return folder, process


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
    code, _, end = supervise(tmp_path, library, "unseen", first_state=("init 9",))
    assert (code, end["reason"]) == (0, "completed")
    assert end["enforcement"].startswith("unenforced")
    assert end["peak_bytes"] is None  # host memory never stands in for the GPU's
    assert any("NOT enforced" in warning for warning in end["warnings"])


def sent(end: dict[str, Any]) -> dict[str, float]:
    """Signal -> when it was first sent, unix seconds."""
    return {each["signal"]: each["time_unix_seconds"] for each in reversed(end["signals"])}


def test_a_trainer_that_ignores_sigterm_is_killed_whole_after_the_grace(
    tmp_path: Path, library: Path
) -> None:
    code, _, end = supervise(tmp_path, library, "stubborn", grace_seconds=3)
    assert (code, end["reason"]) == (75, "over_budget")  # it saved when it was asked to
    when = sent(end)
    assert list(when) == ["SIGKILL", "SIGTERM", "SIGUSR1"]
    assert 3 <= when["SIGKILL"] - when["SIGTERM"] < 30  # not the default, which is 60
    (kill,) = (each for each in end["signals"] if each["signal"] == "SIGKILL")
    assert len(kill["pids"]) == 2  # its child as well
    assert not any(Path(f"/proc/{pid}").exists() for pid in kill["pids"])
    assert any("a stuck context" in warning for warning in end["warnings"])  # the stub keeps it


def test_the_grace_is_short_on_a_card_that_is_nearly_full(tmp_path: Path, library: Path) -> None:
    code, _, end = supervise(tmp_path, library, "tight", grace_seconds=60)
    assert (code, end["reason"]) == (75, "over_budget")
    when = sent(end)
    assert 10 <= when["SIGKILL"] - when["SIGTERM"] < 40


def test_an_old_driver_is_enforced_on_as_well(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old = build_nvml(tmp_path_factory.mktemp("nvml-runs-old"), "OLD_DRIVER")
    code, _, end = supervise(tmp_path, old, "grows")
    assert (code, end["reason"], end["peak_source"]) == (75, "over_budget", "nvml_pid:nvml")


def test_without_process_lists_the_trainers_own_figures_are_enforced(
    tmp_path: Path, library: Path
) -> None:
    code, _, end = supervise(tmp_path, library, "unlisted")
    assert (code, end["reason"]) == (75, "over_budget")
    assert end["peak_source"] == "trainer_reported:trainer"
    assert end["peaks"]["torch_max_reserved"] <= end["peak_bytes"] - (512 << 20)


def test_a_driver_that_does_not_fit_its_library_refuses_the_start(
    tmp_path: Path, library: Path
) -> None:
    folder, process = start(tmp_path, library, "grows", (*IDLE_H100, "init 18"))
    _, said = process.communicate(timeout=1800)
    assert process.returncode == 3
    assert "error: the NVIDIA driver does not work" in said and "hint" in said
    assert "Traceback" not in said
    assert not folder.termination.exists()
    assert not folder.train_log.exists()  # nothing was started


def test_nvml_that_dies_in_mid_run_is_said_and_kills_nobody(tmp_path: Path, library: Path) -> None:
    code, folder, end = supervise(tmp_path, library, "dies")
    assert (code, end["reason"]) == (0, "completed")
    assert end["signals"] == []
    assert any(warning.startswith("UNENFORCED for 1") for warning in end["warnings"])
    assert end["enforcement"].startswith("unenforced at the end, torch's cap")
    assert end["peak_bytes"] == 2000 << 20
    samples = [json.loads(line) for line in (folder / "memory.jsonl").read_text().splitlines()]
    assert samples[-1]["own_bytes"] is None and samples[-1]["failure"]


def test_a_run_can_be_stopped_while_nvml_hangs(tmp_path: Path, library: Path) -> None:
    folder, process = start(tmp_path, library, "hangs")
    state = tmp_path / "nvml.state"
    deadline = time.monotonic() + 300
    while not state.is_fifo():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(3)  # the guard hangs in it by now
    process.terminate()
    _, said = process.communicate(timeout=1800)
    assert "Traceback" not in said, said
    end = termination(folder.path)
    assert end["reason"] == "stopped"
    assert process.returncode == end["exit_code"] == 143
    assert end["checkpoint"]
    samples = [json.loads(line) for line in folder.memory.read_text().splitlines()]
    assert "NVML" in samples[-1]["failure"]


def test_a_context_that_stays_on_the_card_is_reported(tmp_path: Path, library: Path) -> None:
    code, _, end = supervise(tmp_path, library, "sticks")
    assert (code, end["reason"]) == (0, "completed")
    (warning,) = end["warnings"]
    assert "still hold GPU memory: a stuck context" in warning


def test_peaks_come_from_three_sources_side_by_side(tmp_path: Path, library: Path) -> None:
    """What NVML saw is the least; the driver's accounting, read once the process is gone, most."""
    code, _, end = supervise(tmp_path, library, "accounted")
    assert (code, end["reason"]) == (0, "completed")
    end["peaks"].pop("trainer_reported:trainer", None)  # in the moment after it left the card
    assert end["peaks"] == {
        "nvml_pid:nvml": 2000 << 20,
        "torch_max_reserved": 4000 << 20,
        "torch_max_allocated": 3500 << 20,
        "accounting": 5000 << 20,
    }
    assert (end["peak_bytes"], end["peak_source"]) == (5000 << 20, "accounting")
    assert end["peak_step"] == {"torch_max_reserved": 7, "torch_max_allocated": 9}
