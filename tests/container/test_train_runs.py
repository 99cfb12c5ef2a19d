"""The native engine in the real train image: whole runs, their ends, and the script by hand."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.containers.images import Image
from tests.container.conftest import Bench
from tests.container.test_script_runs import ended, log, supervisor_of, wait_until
from tests.runs.conftest import Workplace, lines, termination
from tests.testbed.docker import Daemon

pytestmark = pytest.mark.slow  # the image alone takes minutes where it was never built


@pytest.fixture
def house(docker_daemon: Daemon, train_image: Image, tmp_path: Path) -> Iterator[Bench]:
    """A place for runs in the train image; nothing of a run is left after it."""
    folder = tmp_path / 'it\'s, "a" place'
    folder.mkdir()
    bench = Bench(Workplace(folder), docker_daemon, train_image.name)
    yield bench
    for run in (folder / "runs").glob("*/*"):
        wait_until(lambda run=run: bench.containers(run.absolute()) == [], 20)


def sets(**fields: object) -> list[str]:
    return [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]


def long(steps: int) -> list[str]:
    return sets(**{"training.max_steps": steps, "training.eval_steps": "null"})


def test_a_training_in_the_image_is_whole_and_its_script_repeats_it_by_hand(
    house: Bench, small_job: list[str]
) -> None:
    done = house.place.call("train", *small_job, "--on", "docker")
    assert done.code == 0, done.err
    run = house.place.last
    end = termination(run)
    assert (end["reason"], end["steps"]) == ("completed", 6)
    assert "place      docker, image runner-train" in done.err
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


@pytest.mark.parametrize("kind", ["none", "zero2"])
def test_two_processes_meet_without_a_network(
    house: Bench, small_job: list[str], kind: str
) -> None:
    more = sets(**{"launch.num_processes": 2, "launch.deepspeed": kind})
    done = house.place.call("train", *small_job, *more, "--on", "docker")
    assert done.code == 0, done.err
    assert termination(house.place.last)["steps"] == 6


def test_a_killed_supervisor_costs_nothing_and_the_same_command_goes_on(
    house: Bench, small_job: list[str]
) -> None:
    job = [*small_job, *long(60), "--on", "docker"]
    process = house.place.start("train", *job)
    run = house.place.wait_for_step(3)
    supervisor_of(run).kill()
    ended(process)
    wait_until(lambda: house.containers(run.absolute()) == [], 60)
    assert list((run / "checkpoints").glob("checkpoint-*"))
    assert not (run / "termination.json").exists()
    done = house.place.call("train", *job)
    assert done.code == 0, done.err
    assert "resuming" in done.err and house.place.last == run
    assert [line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line] == [
        *range(1, 61)
    ]


def test_a_stop_saves_and_a_budget_holds(house: Bench, small_job: list[str]) -> None:
    process = house.place.start("train", *small_job, *long(3000), "--on", "docker")
    run = house.place.wait_for_step(3)
    assert house.place.call("stop").code == 0
    assert ended(process).code == 143
    end = termination(run)
    assert (end["reason"], bool(end["checkpoint"])) == ("stopped", True)
    assert "a checkpoint was saved" in log(run)

    tight = sets(**{"budget.host_memory": "300MiB"})
    done = house.place.call("train", *small_job, *tight, "--on", "docker")
    end = termination(house.place.last)
    assert end["reason"] == "over_budget"
    assert done.code in (75, 76)


def test_chat_merge_and_evaluate_ask_the_image_that_trained(
    house: Bench, small_job: list[str]
) -> None:
    assert house.place.call("train", *small_job, "--on", "docker").code == 0
    said = house.place.call("chat", "@last", "-p", "Who are you?", "--json")
    assert said.code == 0 and json.loads(said.out)["answer"], said.err
    assert house.place.call("merge", "@last").code == 0
    assert (house.place.last / "merged" / "model.safetensors").is_file()
    measured = house.place.call("evaluate", "@last", "--max-rows", "3", "--json")
    assert measured.code == 0, measured.err


def test_auto_takes_the_image_and_says_so(
    house: Bench, small_job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_ON", "auto")
    done = house.place.call("check", *small_job)
    assert done.code == 0, done.err
    assert "docker, image runner-train" in done.out
    monkeypatch.setenv("RUNNER_ON", "local")
    done = house.place.call("check", *small_job)
    assert "this machine" in done.out and "RUNNER_ON=local" in done.out


def test_what_fetches_in_the_image_gets_the_token_and_leaves_it_nowhere(
    house: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.engines.load import load_job
    from runner.engines.sft.facts import gather
    from runner.plans.engine_command import question
    from runner.plans.placement import settle_place
    from runner.plans.resolve import planned_container

    monkeypatch.setenv("HF_TOKEN", "canary-of-a-token")
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    loaded = load_job("demo-identity", ["launch.on=docker"])
    assert settle_place(loaded.job).container is not None
    box = planned_container(loaded.job, gather(loaded), online=True)
    asked = question(box, ["this"], online=True)  # any module: what it is started with counts
    program = asked.argv.index("-c")
    shown = [*asked.argv[: program + 3], "bash", "-c", 'echo "told: $HF_TOKEN"']
    try:
        done = subprocess.run(shown, capture_output=True, text=True)
        assert done.stdout.strip() == "told: canary-of-a-token", done.stderr
        assert not any("canary" in word for word in asked.argv)
    finally:
        asked.close()
    assert not list(Path("/dev/shm").glob("runner-*-runner-ask-*"))
