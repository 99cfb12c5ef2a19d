"""Runs with --gpus: what is asked of Docker, and the guard on host pids, with a stub NVML.

The node is fake (tests/testbed): its hook puts device files into the container, its NVML is told
by the test which process of the container holds how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.containers.images import find_image
from tests.support.containers import LONG, Bench, ended, events, log, started, ticks, wait_until
from tests.support.workplace import Workplace, lines, termination
from tests.testbed import FakeNvml, build_nvml
from tests.testbed.docker import GPUS, UUIDS, Daemon, bring, build_base

HOLDER = ticks(LONG).replace('echo "tick $i"', '[[ -e /dev/nvidia0 ]] && echo "tick $i"')

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("nvml-containers"))


@pytest.fixture
def node(
    docker_daemon: Daemon,
    gpu_daemon: Daemon,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Bench, FakeNvml]]:
    """A bench on the daemon with the GPU hook, and the host's NVML."""
    name = build_base(docker_daemon)
    image = find_image(docker_daemon.cli, name)
    assert image is not None
    bring(image, gpu_daemon)
    gpu_daemon.use(monkeypatch)
    nvml = FakeNvml(library, tmp_path / "nvml.state")
    nvml.set(*GPUS)
    for variable, value in nvml.environment().items():
        monkeypatch.setenv(variable, value)
    bench = Bench(Workplace(tmp_path), gpu_daemon, name)
    yield bench, nvml
    for run in (tmp_path / "runs").glob("*/*"):
        wait_until(lambda run=run: bench.containers(run.absolute()) == [])


def job(bench: Bench, **more: object) -> str:
    return bench.script(HOLDER, launch={"on": "docker", "device": "cuda"}, **more)


def holding(*processes: tuple[int, int]) -> list[str]:
    """The node with so many MiB held on the first card, by pid."""
    used = sum(mib for _, mib in processes)
    first = GPUS[1].split()
    first[4] = str(used)
    held = [f"compute 0 {pid} {mib}" for pid, mib in processes]
    return [GPUS[0], " ".join(first), GPUS[2], *held]


def test_the_card_is_handed_over_by_uuid_for_compute_and_utility(
    node: tuple[Bench, FakeNvml],
) -> None:
    bench, _ = node
    process, run = started(bench, job(bench))
    (wanted,) = bench.inspect(run.absolute())["HostConfig"]["DeviceRequests"]
    bench.place.call("stop")
    ended(process)
    assert wanted["DeviceIDs"] == [UUIDS[0]]
    assert {"compute", "utility"} <= set(wanted["Capabilities"][0])
    asked = bench.daemon.asked()[-1]
    assert asked["visible"] == UUIDS[0]


def test_what_a_process_in_the_container_holds_is_the_runs_own(
    node: tuple[Bench, FakeNvml],
) -> None:
    bench, nvml = node
    process, run = started(bench, job(bench, budget={"gpu_memory": "4GiB", "grace_seconds": 5}))
    pid = int(bench.inspect(run.absolute())["State"]["Pid"])
    nvml.set(*holding((pid, 2000), (1, 60000)))  # a neighbour's spike is not ours

    def own() -> set[int | None]:
        return {sample["own_bytes"] for sample in lines(run / "memory.jsonl")}

    wait_until(lambda: 2000 << 20 in own())
    assert not (run / "termination.json").exists()
    nvml.set(*holding((pid, 5000)))
    done = ended(process)
    end = termination(run)
    assert (end["reason"], done.code) == ("over_budget", 76)
    assert end["peak_bytes"] == 5000 << 20
    assert end["peak_source"] == "nvml_pid:nvml"
    assert log(run).splitlines()[-1].startswith("saved at ")
    assert not any(value and value > 5000 << 20 for value in own())
    assert any(event["kind"] == "signal" for event in events(run))


def test_without_a_way_to_hand_out_gpus_it_is_refused_before_the_start(
    docker_daemon: Daemon, node: tuple[Bench, FakeNvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = node
    if docker_daemon.hook is not None:
        pytest.skip("the first daemon has the hook here")
    monkeypatch.delenv("DOCKER_HOST")
    docker_daemon.use(monkeypatch)
    done = bench.place.call("train", job(bench))
    assert done.code == 3, done.err
    assert "NVIDIA" in done.err
    assert not (bench.place.folder / "runs").exists()


def test_a_driver_too_old_for_the_image_is_refused(node: tuple[Bench, FakeNvml]) -> None:
    from runner.common.errors import RefusedError
    from runner.containers.ready import require_driver

    with pytest.raises(RefusedError, match=r"driver"):
        require_driver("535.104.05", "13.0")
    require_driver("580.95.05", "13.0")
