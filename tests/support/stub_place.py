"""Fixtures: a place to call `runner` in whose trainer is the stub, and a job of a tiny plan.

Nothing of the shared material is needed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.stub_trainer import stub_python
from tests.support.workplace import Workplace

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
ROWS = 64


@pytest.fixture(scope="session")
def stub_trainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that trains by the stub."""
    return stub_python(tmp_path_factory.mktemp("stub") / "python")


@pytest.fixture(scope="session")
def stub_settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of demo-identity for the stub: a model by its config alone, and rows."""
    folder = tmp_path_factory.mktemp("stub-inputs")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    rows = [
        {"conversations": [{"role": role, "content": f"{role} {number}"} for role in
                           ("user", "assistant")]}
        for number in range(ROWS)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"model={folder / 'model'}",
        f"data.train={folder / 'rows.jsonl'}",
        "data.format=conversations",
        "training.max_steps=6",
        "training.learning_rate=2e-3",
        "lora.r=4",
        "budget.host_memory=6GiB",
        "tracking.report_to=[]",
    ]


@pytest.fixture(scope="session")
def stub_job(stub_settings: list[str]) -> list[str]:
    """Arguments that make demo-identity a run of the stub, of a second."""
    return ["demo-identity", *(part for text in stub_settings for part in ("--set", text))]


@pytest.fixture
def stub_place(tmp_path: Path, stub_trainer: Path) -> Workplace:
    """A place whose runs the stub trains; its name has a space and quotes, as users' folders do."""
    folder = tmp_path / 'it\'s "a" place'
    folder.mkdir()
    return Workplace(folder, python=str(stub_trainer))
