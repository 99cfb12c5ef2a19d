"""The native engine in the real train image: whole runs, their ends, and the script by hand."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.containers.images import Image
from runner.engines.load import load_job
from runner.plans.placement import settle_place
from tests.support.containers import Bench, ended, log, supervisor_of, wait_until
from tests.support.workplace import Workplace, lines, termination
from tests.testbed.docker import Daemon

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trained(
    docker_daemon: Daemon,
    train_image: Image,
    small_job: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Bench, str]]:
    """A place with a run that the image has completed, and what was said of it."""
    folder = tmp_path_factory.mktemp("trained") / 'it\'s, "a" place'
    folder.mkdir()
    bench = Bench(Workplace(folder), docker_daemon, train_image.name)
    done = bench.place.call("train", *small_job, "--on", "docker")
    assert done.code == 0, done.err
    yield bench, done.err
    bench.clear()


@pytest.fixture
def house(docker_daemon: Daemon, train_image: Image, tmp_path: Path) -> Iterator[Bench]:
    """A place for runs in the train image; nothing of a run is left after it."""
    folder = tmp_path / 'it\'s, "a" place'
    folder.mkdir()
    bench = Bench(Workplace(folder), docker_daemon, train_image.name)
    yield bench
    bench.clear()


def sets(**fields: object) -> list[str]:
    return [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]


def test_a_training_in_the_image_is_whole_and_its_script_repeats_it_by_hand(
    trained: tuple[Bench, str],
) -> None:
    bench, told = trained
    run = bench.place.last
    end = termination(run)
    assert (end["reason"], end["steps"]) == ("completed", 6)
    assert "place      docker, image runner-train" in told
    for path in run.rglob("*"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (os.geteuid(), os.getegid()), path

    # without runner on the host: the recorded command with the script alone, as a person types it
    recorded = json.loads((run / "container.json").read_text())
    before = [line["loss"] for line in lines(run / "metrics.jsonl") if "loss" in line]
    again = subprocess.run(recorded["by_hand"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (run / "earlier" / "1" / "termination.json").is_file()
    after = [line["loss"] for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert after == before and len(after) == 6
    first, second = run / "earlier" / "1" / "adapter", run / "adapter"
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_chat_merge_and_evaluate_ask_the_image_that_trained(trained: tuple[Bench, str]) -> None:
    place = trained[0].place
    said = place.call("chat", "@last", "-p", "Who are you?", "--max-new-tokens", "4", "--json")
    assert said.code == 0 and json.loads(said.out)["answer"], said.err
    assert place.call("merge", "@last").code == 0
    assert (place.last / "merged" / "model.safetensors").is_file()
    measured = place.call("evaluate", "@last", "--max-rows", "1", "--json")
    assert measured.code == 0, measured.err


def test_two_processes_meet_without_a_network_and_save_when_their_supervisor_is_killed(
    house: Bench, small_job: list[str]
) -> None:
    """tests/whole_runs has such a run go on, and tests/security one of a container."""
    more = {"training.max_steps": 3000, "training.eval_steps": "null"}
    both = {"launch.num_processes": 2, "launch.deepspeed": "zero2"}
    process = house.place.start("train", *small_job, *sets(**more, **both), "--on", "docker")
    run = house.place.wait_for_step(3)
    supervisor_of(run).kill()
    ended(process)
    wait_until(lambda: house.containers(run.absolute()) == [])
    (kept,) = (run / "checkpoints").glob("checkpoint-*")
    assert not (run / "termination.json").exists()
    assert "the supervisor is gone; saving a checkpoint" in log(run)
    logged = [line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert logged == [*range(1, int(kept.name.rpartition("-")[2]) + 1)]
    told = house.place.call("report", "@last")
    assert "lost" in told.out and kept.name in told.out


MEET = """
import os

import torch
import torch.distributed as group

group.init_process_group("gloo")
total = torch.ones(3) * (group.get_rank() + 1)
group.all_reduce(total)
assert total.tolist() == [3.0, 3.0, 3.0]
os.write(1, f"rank {group.get_rank()} met\\n".encode())  # whole, between the other's lines
group.barrier()
group.destroy_process_group()  # gloo's threads, still there at the end, can abort the process
os._exit(0)
"""


def test_two_processes_meet_without_a_network(house: Bench) -> None:
    """As DDP does it, which `launch.deepspeed: none` is: gloo, found by this machine's own name."""
    (house.place.folder / "meet.py").write_text(MEET)
    body = """
    export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 OMP_NUM_THREADS=1
    RANK=1 python "$1" & RANK=0 python "$1" && wait $!
    """
    job = house.script(body, inputs=["meet.py"], arguments=["{inputs.0}"])
    done = house.place.call("train", job)
    assert done.code == 0, done.err + log(house.place.last)
    said = log(house.place.last)
    assert "rank 0 met" in said and "rank 1 met" in said


def test_auto_takes_the_image_and_says_so(house: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a survey in the image says is the run's above."""
    monkeypatch.setenv("RUNNER_ON", "auto")
    place = settle_place(load_job("demo-identity").job)
    assert place.container is not None and place.container.image.name == house.image
    assert "docker, image runner-train" in place.line
    monkeypatch.setenv("RUNNER_ON", "local")
    place = settle_place(load_job("demo-identity").job)
    assert place.container is None
    assert "this machine" in place.line and "RUNNER_ON=local" in place.line


def test_what_fetches_in_the_image_gets_the_token_and_leaves_it_nowhere(
    house: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.sft.facts import gather
    from runner.plans.engine_command import question
    from runner.plans.resolve import planned_container

    monkeypatch.setenv("HF_TOKEN", "canary-of-a-token")
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    loaded = load_job("demo-identity", ["launch.on=docker"])
    assert settle_place(loaded.job).container is not None
    box = planned_container(loaded.job, gather(loaded), online=True)
    asked = question(box, ["this"], online=True)  # any module: what it is started with counts
    secrets = asked.secrets
    program = asked.argv.index("-c")
    shown = [*asked.argv[: program + 3], "bash", "-c", 'echo "told: $HF_TOKEN"']
    try:
        done = subprocess.run(shown, capture_output=True, text=True)
        assert done.stdout.strip() == "told: canary-of-a-token", done.stderr
        assert secrets is not None and secrets.is_dir()
        assert not any("canary" in word for word in asked.argv)
    finally:
        asked.close()
    assert secrets is not None and not secrets.exists()
