"""A run that meets its memory budget goes one step down and on from its checkpoint, for real.

The model is tiny but for its vocabulary, so that memory is the batch's: half the rows take half.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.runs import checkpoints
from tests.runs.conftest import Workplace, lines, processes_of, termination, wait_gone

STEPS = 5
SETTINGS = [
    "training.per_device_train_batch_size=8",
    "training.gradient_accumulation_steps=1",
    f"training.max_steps={STEPS}",
    "training.max_length=256",
    "training.warmup_ratio=0",
    "training.learning_rate=2e-3",
    "data.split=null",
    "data.format=alpaca",
    "launch.on=local",
    "tracking.report_to=[]",
]

MAKE = """
import sys
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed
set_seed(1)
config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, vocab_size=32768,
                     bos_token_id=1, eos_token_id=2, pad_token_id=0)
model = LlamaForCausalLM(config)
model.save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


@pytest.fixture(scope="module")
def wide_job(tmp_path_factory: pytest.TempPathFactory, stories: Path) -> list[str]:
    """Arguments of a job on a tiny model with 32,768 entries, and rows of 256 tokens."""
    folder = tmp_path_factory.mktemp("wide")
    subprocess.run([sys.executable, "-c", MAKE, str(stories), str(folder / "model")], check=True)
    draw = random.Random(3)  # noqa: S311 - rows, no secrets
    words = ["the", "cat", "sat", "on", "mats", "and", "saw", "many", "birds", "in", "old", "trees"]
    with (folder / "rows.jsonl").open("w") as rows:
        for number in range(64):
            text = " ".join(draw.choice(words) for _ in range(300))
            row = {"instruction": f"Tell story {number}.", "input": "", "output": text}
            rows.write(json.dumps(row) + "\n")
    settings = [f"model={folder / 'model'}", f"data.train={folder / 'rows.jsonl'}", *SETTINGS]
    return ["demo-identity", *(part for text in settings for part in ("--set", text))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, wide_job: list[str]) -> Path:
    """The run with all the memory that it wants."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"))
    done = place.call("train", *wide_job, "--set", "budget.host_memory=16GiB")
    assert done.code == 0, done.err
    return place.last


def budget_of(run: Path) -> str:
    """Less than the run took, and more than half the rows take."""
    peak = termination(run)["peak_bytes"]
    return f"budget={{host_memory: {(peak >> 20) - 250}MiB}}"


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
def test_a_breach_is_recovered_from_and_the_losses_are_those_of_the_undisturbed_run(
    place: Workplace, wide_job: list[str], undisturbed: Path
) -> None:
    done = place.call(
        "train", *wide_job, "--set", budget_of(undisturbed), "--set", "on_oom=recover"
    )
    end = termination(place.last)
    assert (done.code, end["reason"]) == (0, "completed"), done.err
    assert end["steps"] == STEPS
    [attempt] = end["attempts"]
    assert (attempt["attempt"], attempt["reason"]) == (1, "over_budget")
    assert attempt["then"] == "4 rows x 2 accumulated in place of 8 x 1"
    assert attempt["peak_bytes"] > end["budget_bytes"] >= end["peak_bytes"]
    # what was tried is kept whole, and what runs is told for what it is
    tried = place.last / "attempts" / "1"
    assert "per_device_train_batch_size: 8" in (tried / "plan.yaml").read_text()
    assert termination(tried)["reason"] == "over_budget"
    assert "per_device_train_batch_size: 4" in (place.last / "plan.yaml").read_text()
    assert "SUBSTITUTED: 4 rows x 2 accumulated" in (place.last / "launch.sh").read_text()
    assert any("4 rows x 2 accumulated" in text for text in end["substitutions"])
    # the mathematics is the same: each step's loss is that of the undisturbed run
    assert losses(place.last) == pytest.approx(losses(undisturbed), rel=1e-5)
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
    again = place.call(
        "train", *wide_job, "--set", budget_of(undisturbed), "--set", "on_oom=recover", "--resume"
    )
    assert again.code == 3 and "completed; there is nothing left" in again.err


@pytest.mark.slow
def test_without_recovery_the_verdict_names_what_would_have_fitted(
    place: Workplace, wide_job: list[str], undisturbed: Path
) -> None:
    done = place.call("train", *wide_job, "--set", budget_of(undisturbed))
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
    better = place.call("train", *wide_job, "--set", budget_of(undisturbed), *sets)
    assert better.code == 0, better.err


@pytest.mark.slow
def test_a_budget_that_nothing_fits_ends_after_the_last_step_down(
    place: Workplace, wide_job: list[str]
) -> None:
    """No endless loop: 8, 4, 2, 1 rows, recomputation, a smaller loss chunk, the end."""
    done = place.call(
        *("train", *wide_job, "--set", "budget={host_memory: 300MiB}"),
        *("--set", "on_oom=recover", "--set", "budget.grace_seconds=0"),
        seconds=400,
    )
    end = termination(place.last)
    assert end["reason"] == "over_budget" and done.code == end["exit_code"] == 76
    told = [attempt["then"] for attempt in end["attempts"]]
    assert told[:3] == [
        "4 rows x 2 accumulated in place of 8 x 1",
        "2 rows x 4 accumulated in place of 4 x 2",
        "1 rows x 8 accumulated in place of 2 x 4",
    ]
    assert "gradient_checkpointing" in told[3] and "chunks of 256" in told[4] and len(told) == 5
    assert processes_of(place.last) == []


@pytest.mark.slow
def test_a_kill_between_two_attempts_loses_nothing(
    place: Workplace, wide_job: list[str], undisturbed: Path
) -> None:
    arguments = [*wide_job, "--set", budget_of(undisturbed), "--set", "on_oom=recover"]
    cli = place.start("train", *arguments)
    end = time.monotonic() + 120
    while not (place.folder / "runs").is_dir() or not list(
        (place.folder / "runs").glob("*/*/attempts/1")
    ):
        assert time.monotonic() < end, "no attempt was recovered from"
        time.sleep(0.05)
    run = place.last
    os.kill(int(json.loads((run / "supervisor.json").read_text())["pid"]), signal.SIGKILL)
    cli.communicate(timeout=60)
    wait_gone(run, 150)  # a trainer without its supervisor saves, and ends
    newest, _ = checkpoints.newest_whole(run / "checkpoints")
    assert newest is not None
    done = place.call("train", *arguments, "--resume")
    assert done.code == 0, done.err
    assert place.last == run
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-5)
