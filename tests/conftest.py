"""What all tests share: the shared material, and the real command line called in this process."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.command import SHARED, Answer, run_cli
from tests.support.soaking import IS_SOAK

# fixtures of several folders; each is made once, wherever it is asked for
pytest_plugins = [
    "tests.testbed.docker",
    "tests.support.containers",
    "tests.support.cost",
    "tests.support.network_disks",
    "tests.support.nvml",
    "tests.support.stub_place",
    "tests.support.trainings",
]

# several workers share the cores; what tests threads says how many
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tests say themselves when they mean a container, whatever images this machine has
os.environ["RUNNER_ON"] = "local"
# stubs' cards are called alike in every test run on this machine: none is to wait for another's
LEASES = tempfile.TemporaryDirectory(prefix="runner-leases-")
os.environ["RUNNER_LEASES"] = LEASES.name
# what tests measure corrects no prediction of this machine's user, nor of the next test run
STATE = tempfile.TemporaryDirectory(prefix="runner-state-")
os.environ["RUNNER_STATE"] = STATE.name
# what libraries hold is not measured anew for every test that predicts
os.environ["RUNNER_FOOTPRINT"] = "assumed"

# how long an example takes says how busy the machine is, and nothing of what is tried
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

WEIGHTS = {"slow": 50, "e2e": 50, "container": 15}
"""Of a test with such a mark, against any other: about its seconds against theirs."""


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Of `-n logical`: one more than there are cores, where nobody has said how many.

    Tests of runs and containers wait for a quarter of their time, which another worker's use.
    """
    cores = yield
    return cores if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") else cores + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers side by side (-n) take whole files."""
    from tests.support.groups import by_file

    return by_file(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest starts first: the last file to end is the one all wait for."""
    for item in items:
        if item.get_closest_marker("soak") and not IS_SOAK:
            item.add_marker(pytest.mark.skip(reason="a soak: ./just soak, or RUNNER_SOAK=1"))
    weights: dict[Path, int] = {}
    for item in items:
        weight = next((each for name, each in WEIGHTS.items() if item.get_closest_marker(name)), 1)
        weights[item.path] = weights.get(item.path, 0) + weight
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, models and tokenizers; skips where it is not here."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared material at {SHARED} (RUNNER_SHARED names another place)")
    return SHARED


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`run_cli` in an empty current folder, with a cache and a runs folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RUNNER_RUNS", raising=False)
    return run_cli


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs of so many bytes, which soon is full; skips where mounting is not allowed."""
    place = tmp_path / "disk"

    def mount(size_bytes: int, files: int = 100) -> Path:
        place.mkdir()
        options = f"size={size_bytes},nr_inodes={files}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)
