"""The jobs as their users meet them: smoked anywhere, and their particulars run for real.

What is marked soak goes through the command line and the real engine whole, in minutes. In its
place the suite has test_smoke.py (a smoke, its stand-ins), the stub's two stages below, and
tests/engines/sft (each stage's learning rate, the projector, images) in process.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from runner.jobs.load import list_jobs
from runner.runs import checkpoints
from tests.support.command import SHARED
from tests.support.workplace import Workplace, lines, processes_of, termination, wait_gone

SEVEN = {
    "chnsenticorp-qlora",
    "commonsense-two-stage",
    "demo-identity",
    "emission-column-mapping-lora",
    "emission-unified-lora",
    "llava-gemma-10k-lora",
    "minimind-medical-lora",
}


OTHERS = {"mgm-10k-lora", "script-example"}  # of other engines


def settings(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def test_these_are_all_jobs() -> None:
    assert set(list_jobs()) == SEVEN | OTHERS


@pytest.mark.soak
def test_all_jobs_smoke_on_a_cpu_without_network(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nothing that could be asked answers
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = place.call("smoke", "--max-steps", "5", "--json", seconds=3600)
    assert done.code == 0, done.err
    records = {record["job"]: record for record in done.json["jobs"]}
    assert set(records) == SEVEN | OTHERS
    for name, record in records.items():
        assert record["passed"], (name, record["why"])
    assert "was not run" in records["mgm-10k-lora"]["substitutions"][0]
    for name, record in records.items():
        if name in OTHERS:
            continue
        assert record["steps"] == (10 if name == "llava-gemma-10k-lora" else 5)  # two trainings
        assert record["first_loss"] > 0
        assert any("random" in text for text in record["substitutions"]) or (
            name == "demo-identity"
        )


@pytest.fixture(scope="module")
def two_stages(stories: Path) -> list[str]:
    rows = SHARED / "data" / "commonsense_17k.json"
    if not rows.is_file():
        pytest.skip(f"{rows} is not on this machine")
    return ["commonsense-two-stage", *settings(f"model={stories}", f"data.train={rows}")]


@pytest.mark.e2e
def test_two_stages_survive_a_kill_and_end_as_planned(
    stub_place: Workplace, stub_settings: list[str]
) -> None:
    """Killed in its second stage, the same command ends with the same 50 checkpoints."""
    job = ["commonsense-two-stage", *settings(*stub_settings[:2], "budget={host_memory: 6GiB}")]
    end_in_two_stages(stub_place, job)


@pytest.mark.soak
def test_two_stages_of_the_real_engine_survive_a_kill_and_end_as_planned(
    place: Workplace, two_stages: list[str]
) -> None:
    end_in_two_stages(place, two_stages)


def end_in_two_stages(place: Workplace, two_stages: list[str]) -> None:
    place.start("train", *two_stages)
    run = place.wait_for_step(90, seconds=1800)
    supervisor = json.loads((run / "supervisor.json").read_text())["pid"]
    trainer = json.loads((run / "engine" / "rank-0.json").read_text())["pid"]
    os.kill(supervisor, signal.SIGKILL)
    os.kill(trainer, signal.SIGKILL)
    wait_gone(run)
    kept = [checkpoints.step_of(path) for path in checkpoints.listed(run / "checkpoints")]
    assert kept == list(range(76, kept[-1] + 1))
    assert 89 <= kept[-1] <= 125
    again = place.call("train", *two_stages, seconds=1800)
    assert again.code == 0, again.err
    assert f"from checkpoint-{kept[-1]}" in again.err
    assert place.last == run
    steps = [line for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 126))
    assert {line["learning_rate"] for line in steps[:75]} == {1e-4}
    assert {line["learning_rate"] for line in steps[75:]} == {1e-5}
    saved = checkpoints.listed(run / "checkpoints")
    assert [checkpoints.step_of(path) for path in saved] == list(range(76, 126))
    assert all(checkpoints.damage(path) is None for path in saved)
    # once more: it is finished, and stays as it is
    before = (run / "termination.json").read_bytes()
    refused = place.call("train", *two_stages, "--resume")
    assert refused.code == 3
    assert "completed; there is nothing left to train" in refused.err
    assert (run / "termination.json").read_bytes() == before
    assert processes_of(run) == []


@pytest.mark.e2e
def test_a_dry_run_goes_the_whole_way_and_trains_nothing(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    """What the engine does of it is held by tests/engines/sft/test_ends_in_process.py."""
    place = stub_place
    done = place.call("train", *stub_job, "--dry-run")
    assert done.code == 0, done.err
    run = place.last
    assert run.name.endswith("-dry")
    end = termination(run)
    assert (end["reason"], end["steps"]) == ("completed", 0)
    assert "nothing was trained" in end["message"]
    assert "one batch went through the model, loss" in (run / "logs" / "train.log").read_text()
    assert not (run / "adapter").exists()
    assert checkpoints.listed(run / "checkpoints") == []


@pytest.mark.e2e
def test_what_does_not_fit_on_the_disk_is_not_started(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    huge = settings("training.save_steps=1", "training.max_steps=1000000000")
    done = stub_place.call("train", *stub_job, *huge)
    assert done.code == 3
    assert "its checkpoints and result will take about" in done.err
    assert not (stub_place.folder / "runs").exists()


@pytest.mark.soak
def test_a_projector_is_trained_first_and_an_adapter_after_it(place: Workplace) -> None:
    """llava-gemma-10k-lora on 200 real images, five steps of each training."""
    folder = SHARED / "data" / "mgm_200"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    rows = settings(
        f"phases.0.data.train={folder}/data.jsonl",
        f"phases.0.data.questions={folder}/data.llava.json",
        f"phases.1.data.train={folder}/data.llava.json",
    )
    done = place.call("smoke", "llava-gemma-10k-lora", "--max-steps", "5", *rows, seconds=3600)
    assert done.code == 0, done.err
    run = place.last
    steps = [line for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert [line["phase"] for line in steps] == ["pretrain"] * 5 + ["finetune"] * 5
    assert "data.jsonl in place" not in done.err
    files = json.loads((run / "manifest.json").read_text())["files"]
    images = {each["what"]: each for each in files if each["kind"] == "images"}
    assert list(images) == ["pretrain: data.image_folder", "finetune: data.image_folder"]
    assert all(each["sha256"] and each["files"] == 200 for each in images.values()), images
    with safe_open(run / "phases" / "pretrain" / "projector.safetensors", "pt") as stream:
        first = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a dict
    assert first
    with safe_open(run / "adapter" / "adapter_model.safetensors", "pt") as stream:
        names = list(stream.keys())
        b_names = [name for name in names if "lora_B" in name]
        assert b_names and all("vision" not in name for name in b_names)
        assert any(bool(stream.get_tensor(name).any()) for name in b_names)
        projector = [name for name in names if "projector" in name and "lora" not in name]
        assert projector  # trained in full beside the adapter
        moved = [
            not bool((stream.get_tensor(name) == first[short]).all())
            for name in projector
            for short in first
            if name.endswith(short.split("multi_modal_projector.")[-1])
        ]
        assert moved and all(moved)
