"""A run in a container has a lease as any other; what its container holds is known as its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers.test_gpu_runs import HOLDER, UUIDS, holding, library, node  # noqa: F401
from tests.support.containers import Bench, ended, started
from tests.testbed import FakeNvml

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_LEASES", str(tmp_path / "leases"))


def test_the_memory_of_a_sharing_container_is_not_counted_beside_its_budget(
    node: tuple[Bench, FakeNvml],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, nvml = node
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS[0])
    budget = {"gpu_memory": "40GiB", "grace_seconds": 5}
    launch = {"on": "docker", "device": "cuda", "share": True}
    process, run = started(bench, bench.script(HOLDER, launch=launch, budget=budget))
    pid = int(bench.inspect(run.absolute())["State"]["Pid"])
    nvml.set(*holding((pid, 30 << 10)))
    fits = bench.script(
        "true", name="beside", launch={**launch, "on": "local"}, budget={"gpu_memory": "39GiB"}
    )
    done = bench.place.call("train", fits)
    assert done.code == 0, done.err
    assert f"(NVIDIA H100 80GB HBM3, beside {run.parent.name}/{run.name} (" in done.err
    assert f"pid {pid}" not in done.err
    large = bench.script(
        "true", name="beside", launch={**launch, "on": "local"}, budget={"gpu_memory": "40GiB"}
    )
    refused = bench.place.call("train", large)
    assert refused.code == 3
    assert "39.15 GiB is left of 79.65 GiB, and 40.00 GiB is needed" in refused.err
    bench.place.call("stop", str(run))
    ended(process)
