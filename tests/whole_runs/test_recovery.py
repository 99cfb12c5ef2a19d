"""A run that meets its memory budget goes one step down and on from its checkpoint.

What trains is the stub: a row of its batch takes 64 MiB, and above the rows that fit it waits for
the guard, so nothing here depends on what a peak was measured to be, or on who was quicker. That
the engine itself goes on with half the rows at the same losses is held by
tests/engines/sft/test_ends_in_process.py, and, with the real engine over a real budget, by
test_recovery_for_real.py.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runner.runs import checkpoints
from tests.support.workplace import Workplace, lines, processes_of, termination, wait_gone

pytestmark = pytest.mark.e2e

STEPS = 5
BATCH = [
    *("--set", "training.per_device_train_batch_size=8"),
    *("--set", "training.gradient_accumulation_steps=1"),
    *("--set", f"training.max_steps={STEPS}"),
]
BUDGET = ["--set", "budget={host_memory: 400MiB}"]
"""Eight rows take 512 MiB and what Python takes, four half of it."""
RECOVER = ["--set", "on_oom=recover"]


@pytest.fixture
def place(stub_place: Workplace) -> Workplace:
    return replace(stub_place, stub={"STUB_ROW_MIB": "64", "STUB_WAIT_ABOVE": "4"})


@pytest.fixture
def wide_job(stub_job: list[str]) -> list[str]:
    return [*stub_job, *BATCH]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, stub_trainer: Path, stub_job: list[str]
) -> Path:
    """The run with all the memory that it wants."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"), python=str(stub_trainer))
    done = place.call("train", *stub_job, *BATCH)
    assert done.code == 0, done.err
    return place.last


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run / "metrics.jsonl") if "loss" in line]


def test_a_breach_is_recovered_from_and_the_losses_are_those_of_the_undisturbed_run(
    place: Workplace, wide_job: list[str], undisturbed: Path
) -> None:
    done = place.call("train", *wide_job, *BUDGET, *RECOVER)
    end = termination(place.last)
    assert (done.code, end["reason"]) == (0, "completed"), done.err
    assert end["steps"] == STEPS
    [attempt] = end["attempts"]
    assert (attempt["attempt"], attempt["reason"]) == (1, "over_budget")
    assert attempt["then"] == "4 rows x 2 accumulated in place of 8 x 1"
    assert attempt["peak_bytes"] > end["budget_bytes"] == 400 << 20 >= end["peak_bytes"]
    # what was tried is kept whole, and what runs is told for what it is
    tried = place.last / "attempts" / "1"
    assert "per_device_train_batch_size: 8" in (tried / "plan.yaml").read_text()
    assert termination(tried)["reason"] == "over_budget"
    assert "per_device_train_batch_size: 4" in (place.last / "plan.yaml").read_text()
    assert "SUBSTITUTED: 4 rows x 2 accumulated" in (place.last / "launch.sh").read_text()
    assert any("4 rows x 2 accumulated" in text for text in end["substitutions"])
    # it went on, and each step was made once
    assert losses(place.last) == losses(undisturbed)
    assert end["adapter_sha256"] == termination(undisturbed)["adapter_sha256"]
    steps = [line["step"] for line in lines(place.last / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    manifest = json.loads((place.last / "manifest.json").read_text())
    assert manifest["plan"]["training"]["per_device_train_batch_size"] == 4
    [told] = manifest["attempts"]
    assert told["changed"]["training.per_device_train_batch_size"] == [8, 4]
    assert (told["reason"], told["checkpoint"]) == ("over_budget", attempt["checkpoint"])
    assert "recovered" in done.out and "attempt 1 ended over_budget" in done.out
    assert "recovered" in place.call("report", "@last").out
    # the same command finds the run that was recovered, by the plan that it began as
    again = place.call("train", *wide_job, *BUDGET, *RECOVER, "--resume")
    assert again.code == 3 and "completed; there is nothing left" in again.err


def test_without_recovery_the_verdict_names_what_would_have_fitted(
    place: Workplace, wide_job: list[str]
) -> None:
    done = place.call("train", *wide_job, *BUDGET)
    end = termination(place.last)
    assert (done.code, end["reason"]) == (end["exit_code"], "over_budget")
    assert 1 <= len(end["advice"]) <= 3
    assert "would fit" in done.out
    advice = json.loads((place.last / "advice.json").read_text())
    assert advice["limit_bytes"] == end["budget_bytes"]
    for change in advice["changes"]:
        assert change["peak_bytes"] <= end["budget_bytes"]
        assert change["overrides"]
    # what is advised does fit, when it is done
    changes = [
        f"{name}={json.dumps(value)}" for name, value in advice["changes"][0]["overrides"].items()
    ]
    sets = [part for text in changes for part in ("--set", text)]
    better = place.call("train", *wide_job, *BUDGET, *sets)
    assert better.code == 0, better.err


def test_a_budget_that_nothing_fits_ends_after_the_last_step_down(
    place: Workplace, wide_job: list[str]
) -> None:
    """No endless loop: 8, 4, 2, 1 rows, recomputation, a smaller loss chunk, the end."""
    place = replace(place, stub={"STUB_ROW_MIB": "64", "STUB_WAIT_ABOVE": "0"})
    done = place.call(
        *("train", *wide_job, "--set", "budget={host_memory: 64MiB}"),
        *(*RECOVER, "--set", "budget.grace_seconds=0"),
    )
    end = termination(place.last)
    assert end["reason"] == "over_budget" and done.code == end["exit_code"]
    told = [attempt["then"] for attempt in end["attempts"]]
    assert told[:3] == [
        "4 rows x 2 accumulated in place of 8 x 1",
        "2 rows x 4 accumulated in place of 4 x 2",
        "1 rows x 8 accumulated in place of 2 x 4",
    ]
    assert "gradient_checkpointing" in told[3] and "chunks of 256" in told[4] and len(told) == 5
    assert processes_of(place.last) == []


def test_a_kill_between_two_attempts_loses_nothing(
    place: Workplace, wide_job: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    # the second attempt does not end before it was looked at
    place = replace(place, stub={**place.stub, "STUB_RELEASE": str(tmp_path / "release")})
    arguments = [*wide_job, *BUDGET, *RECOVER]
    cli = place.start("train", *arguments)
    end = time.monotonic() + 1800
    while not list((place.folder / "runs").glob("*/*/attempts/1")):
        assert time.monotonic() < end and cli.poll() is None, "no attempt was recovered from"
        time.sleep(0.05)
    run = place.last
    os.kill(int(json.loads((run / "supervisor.json").read_text())["pid"]), signal.SIGKILL)
    cli.communicate(timeout=1800)
    wait_gone(run)  # a trainer without its supervisor saves, and ends
    newest, _ = checkpoints.newest_whole(run / "checkpoints")
    assert newest is not None
    (tmp_path / "release").touch()
    done = place.call("train", *arguments, "--resume")
    assert done.code == 0, done.err
    assert place.last == run
    assert losses(run) == losses(undisturbed)
