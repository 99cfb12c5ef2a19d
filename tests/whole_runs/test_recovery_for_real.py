"""The real engine over a real budget goes one step down and on from its checkpoint: a soak.

The model is tiny but for its vocabulary, so that memory is the batch's: half the rows take half.
In the suite test_recovery.py and tests/engines/sft/test_ends_in_process.py hold the same.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.workplace import Workplace, lines, termination

pytestmark = pytest.mark.soak

SETTINGS = [
    "training.per_device_train_batch_size=8",
    "training.gradient_accumulation_steps=1",
    "training.max_steps=5",
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


def test_a_breach_is_recovered_from_and_the_losses_are_those_of_the_undisturbed_run(
    place: Workplace, wide_job: list[str], undisturbed: Path
) -> None:
    budget = ("--set", budget_of(undisturbed))
    done = place.call("train", *wide_job, *budget, "--set", "on_oom=recover")
    end = termination(place.last)
    assert (done.code, end["reason"]) == (0, "completed"), done.err
    [attempt] = end["attempts"]
    assert attempt["then"] == "4 rows x 2 accumulated in place of 8 x 1"
    assert losses(place.last) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_what_is_advised_does_fit_when_it_is_done(
    place: Workplace, wide_job: list[str], undisturbed: Path
) -> None:
    done = place.call("train", *wide_job, "--set", budget_of(undisturbed))
    end = termination(place.last)
    assert (done.code, end["reason"]) == (end["exit_code"], "over_budget")
    advice = json.loads((place.last / "advice.json").read_text())
    assert 1 <= len(advice["changes"]) <= 3
    assert all(change["peak_bytes"] <= end["budget_bytes"] for change in advice["changes"])
    changes = [
        f"{name}={json.dumps(value)}" for name, value in advice["changes"][0]["overrides"].items()
    ]
    sets = [part for text in changes for part in ("--set", text)]
    better = place.call("train", *wide_job, "--set", budget_of(undisturbed), *sets)
    assert better.code == 0, better.err
