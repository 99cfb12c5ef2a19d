"""Fixtures: real runs of the real CLI on the real 260K-parameter model and real rows of ../shared.

May import pytest and tests.support.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import SHARED
from tests.support.shared_runs import made_once
from tests.support.workplace import Workplace


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real Llama checkpoint of 260,032 parameters."""
    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    return folder


@pytest.fixture(scope="session")
def identity_rows() -> Path:
    path = SHARED / "data" / "lora_identity.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    return path


@pytest.fixture(scope="session")
def small_job(stories: Path, identity_rows: Path) -> list[str]:
    """Arguments that make demo-identity a run of seconds."""
    settings = [
        f"model={stories}",
        f"data.train={identity_rows}",
        "data.format=conversations",
        "training.max_steps=6",
        "training.max_length=512",
        "training.learning_rate=2e-3",
        "lora.r=4",
        "budget.host_memory=6GiB",
    ]
    return ["demo-identity", *(part for text in settings for part in ("--set", text))]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    # a name with a space and quotes, as users' folders have
    folder = tmp_path / 'it\'s "a" place'
    folder.mkdir()
    return Workplace(folder)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_job: list[str]) -> Path:
    """One completed run of the real engine, made once for all workers: survey, launcher and all.

    Tests only read it, or copy it before they change it.
    """

    def train(folder: Path) -> None:
        done = Workplace(folder).call("train", *small_job)
        assert done.code == 0, done.err

    return Workplace(made_once(tmp_path_factory, "finished", train)).last
