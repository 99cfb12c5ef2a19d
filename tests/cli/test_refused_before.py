"""`runner check` on models and images that a run would fail on: refused by name, exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine_forks import preloaded

Command = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def engine_is_here() -> Iterator[None]:
    with preloaded():
        yield


def model(shared: Path, folder: Path, name: str) -> Path:
    """A model folder of the small stories' tokenizer and a config that does not fit it."""
    configs = {
        "small-vocab": {"model_type": "llama", "vocab_size": 300, "hidden_size": 16,
                        "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "gpt2": {"model_type": "gpt2", "vocab_size": 600, "n_embd": 16, "n_layer": 2, "n_head": 2,
                 "n_positions": 64},
        "gptq": {"model_type": "llama", "vocab_size": 512, "hidden_size": 16,
                 "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "quantization_config": {"quant_method": "gptq", "bits": 4}},
    }  # fmt: skip
    out = folder / name
    out.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "models" / "stories260k" / file, out)
    (out / "config.json").write_text(json.dumps(configs[name]))
    return out


@pytest.mark.parametrize(
    ("case", "name", "told"),
    [
        ("t-small-vocab", "small-vocab", ("512 tokens", "300 rows")),
        ("t-gpt2-positions", "gpt2", ("64 positions", "training.max_length=64")),
        ("t-small-vocab", "gptq", ("GPTQ, 4 bits", "unquantized")),
    ],
)
def test_a_model_that_can_not_take_the_rows(
    cli: Command, shared: Path, tmp_path: Path, case: str, name: str, told: tuple[str, ...]
) -> None:
    job = str(shared / "cases" / case / "job.yaml")
    done = cli("check", job, "--set", f"model={model(shared, tmp_path, name)}")
    assert done.code == 2, done.out + done.err
    assert all(part in done.err for part in told), done.err


def test_a_training_of_one_step_that_warms_up(cli: Command, shared: Path) -> None:
    job = str(shared / "cases" / "t-small-vocab" / "job.yaml")
    sets = ("--set", "training.max_steps=1", "--set", "training.warmup_ratio=0.1")
    done = cli("check", job, *sets)
    assert done.code == 2 and "learning rate is 0 in every step" in done.err, done.err


def test_memory_of_a_folder_without_the_rows(cli: Command, shared: Path) -> None:
    job = str(shared / "cases" / "t-small-vocab" / "job.yaml")
    done = cli("vram", job, "--set", "data.train=nowhere.jsonl")
    assert done.code == 0, done.err
    assert "training.max_length" in done.out


def test_rows_cut_to_nothing_are_refused_not_trained(
    cli: Command, shared: Path, tmp_path: Path
) -> None:
    settings = [
        f"model={shared / 'models' / 'stories260k'}",
        f"data.train={shared / 'data' / 'lora_identity.jsonl'}",
        "data.format=conversations",
        "training.max_length=8",
    ]
    sets = [part for text in settings for part in ("--set", text)]
    done = cli("train", "demo-identity", *sets)
    assert done.code == 2
    assert "truncation removes every answer" in done.err
    assert "training.max_length" in done.err
    assert not (tmp_path / "runs").exists()  # before anything is started
