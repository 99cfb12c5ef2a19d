"""How runs end: budget, signals, kills. Each fault is injected for real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runner.runs import checkpoints
from tests.runs.conftest import Workplace, lines, processes_of, termination, wait_gone

LONG = ["--set", "training.max_steps=4000"]


def supervisor_of(run: Path) -> int:
    return int(json.loads((run / "supervisor.json").read_text())["pid"])


def trainer_of(run: Path) -> int:
    return int(json.loads((run / "engine" / "rank-0.json").read_text())["pid"])


def test_a_budget_that_is_too_small_stops_the_run_with_a_checkpoint(
    place: Workplace, small_job: list[str], finished_run: Path
) -> None:
    needed = termination(finished_run)["peak_bytes"]
    budget = (needed >> 20) - 300
    done = place.call("train", *small_job, *LONG, "--set", f"budget.host_memory={budget}MiB")
    end = termination(place.last)
    assert done.code == end["exit_code"] == 75, done.err
    assert end["reason"] == "over_budget"
    assert end["peak_bytes"] > end["budget_bytes"] == budget << 20
    assert [sent["signal"] for sent in end["signals"]][:2] == ["SIGUSR1", "SIGTERM"]
    assert any("of the budget" in warning for warning in end["warnings"])
    saved = place.last / end["checkpoint"]
    assert checkpoints.damage(saved) is None
    assert processes_of(place.last) == []
    assert "over_budget" in place.call("report", "@last").out


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_the_run_resumes_to_its_end(
    place: Workplace, small_job: list[str]
) -> None:
    cli = place.start("train", *small_job, "--set", "training.max_steps=120")
    run = place.wait_for_step(5)
    cli.send_signal(signal.SIGINT)
    _, err = cli.communicate(timeout=60)
    end = termination(run)
    assert cli.returncode == end["exit_code"] == 130, err
    assert end["reason"] == "stopped"
    step = checkpoints.step_of(run / end["checkpoint"])
    assert 5 <= step < 120
    assert processes_of(run) == []
    done = subprocess.run(
        ["bash", str(run / "launch.sh"), "--resume"],
        capture_output=True,
        text=True,
        env=place.environment(),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming from checkpoint-{step}" in done.stderr
    steps = [line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 121))
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    # the verdict on the first start is kept, and does not speak for the second
    assert termination(run / "earlier" / "1")["reason"] == "stopped"
    assert place.call("report", str(run), "--json").json["state"] == "by_hand"


def test_ctrl_c_twice_kills(place: Workplace, small_job: list[str]) -> None:
    cli = place.start("train", *small_job, *LONG)
    run = place.wait_for_step(1)
    os.kill(trainer_of(run), signal.SIGSTOP)  # a trainer that can't answer
    cli.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert cli.poll() is None
    cli.send_signal(signal.SIGINT)
    cli.communicate(timeout=30)
    end = termination(run)
    assert (cli.returncode, end["reason"]) == (130, "stopped")
    assert end["signals"][-1]["signal"] == "SIGKILL"
    assert processes_of(run) == []


def test_a_killed_trainer_gets_a_verdict(place: Workplace, small_job: list[str]) -> None:
    cli = place.start("train", *small_job, *LONG)
    run = place.wait_for_step(1)
    os.kill(trainer_of(run), signal.SIGKILL)
    cli.communicate(timeout=60)
    end = termination(run)
    assert end["reason"] == "failed"
    assert cli.returncode == end["exit_code"] != 0
    assert "was killed while training, not by runner" in end["message"]
    assert processes_of(run) == []


def test_a_killed_supervisor_leaves_a_lost_run_with_its_checkpoint(
    place: Workplace, small_job: list[str]
) -> None:
    cli = place.start("train", *small_job, *LONG)
    run = place.wait_for_step(2)
    trainer = trainer_of(run)
    os.kill(trainer, signal.SIGSTOP)
    os.kill(supervisor_of(run), signal.SIGKILL)
    cli.communicate(timeout=60)
    assert cli.returncode == 137
    # as long as the orphan lives, nobody else trains in its folder
    again = subprocess.run(
        ["bash", str(run / "launch.sh"), "--resume"], capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 3
    assert f"pids [{trainer}] train in" in again.stderr
    assert place.call("report", "@last", "--json").json["living_engines"] == [trainer]
    os.kill(trainer, signal.SIGCONT)
    wait_gone(run, 60)  # the trainer notices, saves and ends: nothing trains unguarded
    assert not (run / "termination.json").exists()
    report = place.call("report", "@last", "--json").json
    assert report["state"] == "lost"
    assert report["whole_checkpoint"] is not None
    assert report["living_engines"] == []
    text = place.call("report", "@last").out
    assert "lost" in text
    assert f"the same runner train command resumes from {report['whole_checkpoint']}" in text


@pytest.mark.slow
def test_a_killed_terminal_does_not_end_the_run(place: Workplace, small_job: list[str]) -> None:
    cli = place.start("train", *small_job, "--set", "training.max_steps=40")
    run = place.wait_for_step(1)
    os.killpg(cli.pid, signal.SIGHUP)
    os.killpg(cli.pid, signal.SIGKILL)
    cli.communicate(timeout=20)
    wait_gone(run, 90)
    assert termination(run)["reason"] == "completed"


def test_a_trainer_that_ignores_the_end_is_killed_after_its_grace(
    place: Workplace, small_job: list[str]
) -> None:
    cli = place.start("train", *small_job, *LONG, "--set", "budget.grace_seconds=2")
    run = place.wait_for_step(1)
    os.kill(trainer_of(run), signal.SIGSTOP)
    os.kill(supervisor_of(run), signal.SIGTERM)
    cli.communicate(timeout=40)
    end = termination(run)
    assert [sent["signal"] for sent in end["signals"]][:2] == ["SIGTERM", "SIGKILL"]
    assert end["reason"] == "stopped" and end["exit_code"] == 143
    assert processes_of(run) == []


@pytest.mark.slow
def test_a_run_ends_when_its_time_is_up(place: Workplace, small_job: list[str]) -> None:
    done = place.call("train", *small_job, *LONG, "--set", "timeout_minutes=0.5")
    end = termination(place.last)
    assert end["reason"] == "timeout" and done.code == 143
    assert end["checkpoint"] is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_and_loses_no_checkpoint(
    place: Workplace, small_job: list[str]
) -> None:
    small = place.folder / "runs"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)])
    if mounted.returncode:
        pytest.skip("this machine can't mount a tmpfs")
    try:
        often = ["--set", "training.save_steps=1", "--set", "training.max_steps=100"]
        cli = place.start("train", *small_job, *often)
        run = place.wait_for_step(2)
        others = small / "somebody else's"  # there was room enough at the start
        with contextlib.suppress(OSError), others.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"\0" * 65536)
        cli.communicate(timeout=90)
        end = termination(run)
        assert cli.returncode == end["exit_code"] == 1
        assert end["reason"] == "failed" and "No space left" in end["message"]
        whole, _ = checkpoints.newest_whole(run / "checkpoints")
        assert whole is not None and end["checkpoint"] == f"checkpoints/{whole.name}"
        assert processes_of(run) == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
