"""How runs end: budget, signals, kills. Each fault is injected for real.

What supervises is real; what trains is the stub (tests/support/stub_trainer), whose answer to a
signal is the engine's own Control.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runner.runs import checkpoints
from tests.support.workplace import Workplace, lines, processes_of, termination, wait_gone

LONG = ["--set", "training.max_steps=100000"]
STOP_SECONDS = 1800.0
"""How long a signal is waited for: only what has failed takes as long."""


def supervisor_of(run: Path) -> int:
    return int(json.loads((run / "supervisor.json").read_text())["pid"])


def trainer_of(run: Path) -> int:
    return int(json.loads((run / "engine" / "rank-0.json").read_text())["pid"])


def wait_for_signal(run: Path, kind: str) -> None:
    """Until the supervisor has written that it sent a signal."""
    end = time.monotonic() + STOP_SECONDS
    while not any(event["text"].startswith(f"{kind} ") for event in lines(run / "events.jsonl")):
        assert time.monotonic() < end, lines(run / "events.jsonl")
        time.sleep(0.02)


@pytest.mark.e2e
def test_a_budget_that_is_too_small_stops_the_run_with_a_checkpoint(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    # a row takes 64 MiB, eight are held at once: 512 MiB and what Python takes
    place = replace(stub_place, stub={"STUB_ROW_MIB": "64", "STUB_WAIT_ABOVE": "4"})
    rows = ["--set", "training.per_device_train_batch_size=8"]
    done = place.call("train", *stub_job, *LONG, *rows, "--set", "budget.host_memory=400MiB")
    end = termination(place.last)
    assert done.code == end["exit_code"] == 75, done.err
    assert end["reason"] == "over_budget"
    assert end["peak_bytes"] > end["budget_bytes"] == 400 << 20
    assert [sent["signal"] for sent in end["signals"]][:2] == ["SIGUSR1", "SIGTERM"]
    assert any("of the budget" in warning for warning in end["warnings"])
    saved = place.last / end["checkpoint"]
    assert checkpoints.damage(saved) is None
    assert processes_of(place.last) == []
    assert "over_budget" in place.call("report", "@last").out


@pytest.mark.e2e
def test_ctrl_c_saves_a_checkpoint_and_the_run_resumes_to_its_end(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    """Asked to end by the real supervisor, and started again by hand.

    What the real engine does when it is asked so, and that it goes on to the same bits, is held by
    tests/engines/sft/test_bit_exact.py, with a launch script by tests/security/test_pickles.py.
    """
    place = stub_place
    short = {
        "training.max_steps": "60",
        "training.per_device_train_batch_size": "1",
        "training.gradient_accumulation_steps": "1",
        "training.max_length": "128",
        "budget.grace_seconds": "600",
    }
    sets = [part for name, value in short.items() for part in ("--set", f"{name}={value}")]
    cli = place.start("train", *stub_job, *sets)
    run = place.wait_for_step(3)
    os.kill(trainer_of(run), signal.SIGSTOP)  # so that it does not end before it is asked to
    cli.send_signal(signal.SIGINT)
    wait_for_signal(run, "SIGTERM")
    os.kill(trainer_of(run), signal.SIGCONT)
    _, err = cli.communicate(timeout=1800)
    end = termination(run)
    assert cli.returncode == end["exit_code"] == 130, err
    assert end["reason"] == "stopped"
    step = checkpoints.step_of(run / end["checkpoint"])
    assert 3 <= step < 60
    assert processes_of(run) == []
    done = subprocess.run(
        ["bash", str(run / "launch.sh"), "--resume"],
        capture_output=True,
        text=True,
        env=place.environment(),
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert f"going on from checkpoint-{step}" in done.stdout + done.stderr
    steps = [line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 61))
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    # the verdict on the first start is kept, and does not speak for the second
    assert termination(run / "earlier" / "1")["reason"] == "stopped"
    assert place.call("report", str(run), "--json").json["state"] == "by_hand"


@pytest.mark.e2e
def test_ctrl_c_twice_kills(stub_place: Workplace, stub_job: list[str]) -> None:
    cli = stub_place.start("train", *stub_job, *LONG)
    run = stub_place.wait_for_step(1)
    os.kill(trainer_of(run), signal.SIGSTOP)  # a trainer that can't answer
    cli.send_signal(signal.SIGINT)
    wait_for_signal(run, "SIGTERM")
    assert cli.poll() is None
    cli.send_signal(signal.SIGINT)
    cli.communicate(timeout=1800)
    end = termination(run)
    assert (cli.returncode, end["reason"]) == (130, "stopped")
    assert end["signals"][-1]["signal"] == "SIGKILL"
    assert processes_of(run) == []


@pytest.mark.e2e
def test_a_killed_trainer_gets_a_verdict(stub_place: Workplace, stub_job: list[str]) -> None:
    cli = stub_place.start("train", *stub_job, *LONG)
    run = stub_place.wait_for_step(1)
    os.kill(trainer_of(run), signal.SIGKILL)
    cli.communicate(timeout=1800)
    end = termination(run)
    assert end["reason"] == "failed"
    assert cli.returncode == end["exit_code"] != 0
    assert "was killed while training, not by runner" in end["message"]
    assert processes_of(run) == []


@pytest.mark.e2e
def test_a_killed_supervisor_leaves_a_lost_run_with_its_checkpoint(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    cli = stub_place.start("train", *stub_job, *LONG)
    run = stub_place.wait_for_step(2)
    trainer = trainer_of(run)
    os.kill(trainer, signal.SIGSTOP)
    os.kill(supervisor_of(run), signal.SIGKILL)
    cli.communicate(timeout=1800)
    assert cli.returncode == 137
    # as long as the orphan lives, nobody else trains in its folder
    again = subprocess.run(
        ["bash", str(run / "launch.sh"), "--resume"], capture_output=True, text=True, timeout=1800
    )
    assert again.returncode == 3
    assert f"pids [{trainer}] train in" in again.stderr
    assert stub_place.call("report", "@last", "--json").json["living_engines"] == [trainer]
    os.kill(trainer, signal.SIGCONT)
    wait_gone(run)  # the trainer notices, saves and ends: nothing trains unguarded
    assert not (run / "termination.json").exists()
    report = stub_place.call("report", "@last", "--json").json
    assert report["state"] == "lost"
    assert report["whole_checkpoint"] is not None
    assert report["living_engines"] == []
    text = stub_place.call("report", "@last").out
    assert "lost" in text
    assert f"the same runner train command resumes from {report['whole_checkpoint']}" in text


@pytest.mark.e2e
def test_a_killed_terminal_does_not_end_the_run(
    stub_place: Workplace, stub_job: list[str], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    place = replace(stub_place, stub={"STUB_RELEASE": str(release)})
    cli = place.start("train", *stub_job)
    run = place.wait_for_step(1)
    os.killpg(cli.pid, signal.SIGHUP)
    os.killpg(cli.pid, signal.SIGKILL)
    cli.communicate(timeout=1800)
    release.touch()
    wait_gone(run)
    assert termination(run)["reason"] == "completed"


@pytest.mark.e2e
def test_a_trainer_that_ignores_the_end_is_killed_after_its_grace(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    cli = stub_place.start("train", *stub_job, *LONG, "--set", "budget.grace_seconds=2")
    run = stub_place.wait_for_step(1)
    os.kill(trainer_of(run), signal.SIGSTOP)
    os.kill(supervisor_of(run), signal.SIGTERM)
    cli.communicate(timeout=1800)
    end = termination(run)
    assert [sent["signal"] for sent in end["signals"]][:2] == ["SIGTERM", "SIGKILL"]
    assert end["reason"] == "stopped" and end["exit_code"] == 143
    assert processes_of(run) == []


@pytest.mark.e2e
def test_a_run_ends_when_its_time_is_up(stub_place: Workplace, stub_job: list[str]) -> None:
    done = stub_place.call("train", *stub_job, *LONG, "--set", "timeout_minutes=0.15")
    end = termination(stub_place.last)
    assert end["reason"] == "timeout" and done.code == 143
    assert end["seconds"] >= 9
    trained = lines(stub_place.last / "metrics.jsonl")  # a slow machine may not have come to it
    assert (end["checkpoint"] is not None) == bool(trained)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("non_finite_loss", "non_finite_loss"), ("cuda_oom", "cuda_oom"), ("failed", "failed")],
)
def test_what_the_trainer_says_of_its_failure_is_the_reason(
    kind: str, reason: str, stub_place: Workplace, stub_job: list[str]
) -> None:
    place = replace(stub_place, stub={"STUB_FAULT": f"3:{kind}"})
    done = place.call("train", *stub_job)
    end = termination(place.last)
    assert (done.code, end["exit_code"], end["reason"]) == (1, 1, reason)
    assert (end["steps"], end["adapter_sha256"]) == (2, None)
    assert not (place.last / "adapter").exists()


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_and_loses_no_checkpoint(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    small = stub_place.folder / "runs"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)])
    if mounted.returncode:
        pytest.skip("this machine can't mount a tmpfs")
    try:
        often = ["--set", "training.save_steps=1", "--set", "training.save_total_limit=2"]
        cli = stub_place.start("train", *stub_job, *LONG, *often)
        run = stub_place.wait_for_step(2)
        others = small / "somebody else's"  # there was room enough at the start
        reserve = run / "engine" / ".reserve-0"  # what the engine gives back to say why it ends
        while cli.poll() is None:  # what an older checkpoint gives back is taken, too
            if not reserve.exists():
                time.sleep(0.05)
                continue
            with contextlib.suppress(OSError), others.open("ab", buffering=0) as stream:
                stream.write(b"\0" * 4096)
        cli.communicate(timeout=1800)
        end = termination(run)
        assert cli.returncode == end["exit_code"] == 1
        assert end["reason"] == "failed" and "No space left" in end["message"]
        whole, _ = checkpoints.newest_whole(run / "checkpoints")
        assert whole is not None and end["checkpoint"] == f"checkpoints/{whole.name}"
        assert processes_of(run) == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
