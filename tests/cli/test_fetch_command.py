"""`runner fetch`, and what the other commands make of what it brought."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.common.errors import RefusedError
from runner.common.output import Output
from runner.engines.load import load_job
from runner.engines.sft.facts import gather
from runner.launch import preflight
from runner.launch.preflight import fetch_missing
from tests.support.command import Answer
from tests.testbed.hub import FakeHub, Repository, serve, surroundings

ROWS = [{"instruction": f"say {i}", "input": "", "output": str(i)} for i in range(30)]
JOB = """
description: rows and weights from a hub
model: o/m
method: lora
data: {train: "hub:o/d", eval: "hub:o/d", hub: {eval_split: test}}
training: {max_steps: 2}
launch: {device: cpu}
smoke: {model_type: llama}
"""

pytest.importorskip("huggingface_hub")
Cli = Callable[..., Answer]


@pytest.fixture
def hub(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a model and a data set, and a job that wants them."""
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    model = {
        "config.json": b'{"model_type": "llama", "dtype": "bfloat16"}',
        "tokenizer.json": b"{}",
        "model.safetensors": os.urandom(100_000),
    }
    data = {"train.jsonl": lines, "test.jsonl": lines[:500].rpartition(b"\n")[0]}
    repositories = {"o/m": Repository(model), "o/d": Repository(data, type="dataset")}
    with serve(FakeHub(repositories)) as found:
        for name, value in surroundings(found, tmp_path).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        (tmp_path / "job.yaml").write_text(JOB)
        yield found


def test_a_job_is_fetched_once_and_then_runs_without_a_network(
    cli: Cli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = cli("render", "job.yaml", "--file", "plan.yaml")
    assert before.code == 0 and "sha256: null" in before.out
    first = cli("fetch", "job.yaml")
    assert first.code == 0, first
    assert "model.safetensors  98 KiB in" in capfd.readouterr().err  # by the process that fetches
    table = first.out.splitlines()
    assert [line.split()[0] for line in table] == [
        "FIELD",
        "model",
        "data.train",
        "data.eval",
        "all",
    ]
    assert sum("fetched in" in line for line in table) == 3
    assert hub.repositories["o/m"].commit[:7] in table[1]
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    second = cli("fetch", "job.yaml")
    assert second.code == 0 and second.out.splitlines()[-1] == "all here"
    assert hub.requests == []
    plan = cli("render", "job.yaml", "--file", "plan.yaml")
    assert plan.code == 0, plan
    assert f"revision: {hub.repositories['o/m'].commit}" in plan.out
    assert f"revision: {hub.repositories['o/d'].commit}" in plan.out
    assert "sha256: null" not in plan.out.split("rows:")[1].split("training:")[0]
    assert "hub--o--d@main--default--test.parquet" in plan.out
    assert not hub.requests


def test_json_says_all_of_it_and_prints_nothing_else(
    cli: Cli, hub: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = cli("fetch", "job.yaml", "--json")
    assert answer.code == 0
    assert capfd.readouterr().err == ""
    record = json.loads(answer.out)
    assert record["ok"] and record["job"] == "job"
    model, train, evaluation = record["items"]
    assert model["fields"] == ["model"] and model["state"] == "fetched"
    assert model["fetched_bytes"] == model["size_bytes"] > 100_000
    assert len(model["sha256"]) == len(train["sha256"]) == 64
    assert (train["split"], evaluation["split"]) == ("train", "test")
    assert Path(train["where"]).is_file()
    again = json.loads(cli("fetch", "job.yaml", "--json").out)
    assert [item["state"] for item in again["items"]] == ["here"] * 3
    assert [item["sha256"] for item in again["items"]] == [i["sha256"] for i in record["items"]]


def test_what_cannot_be_had_is_told_beside_what_can(cli: Cli, hub: FakeHub) -> None:
    answer = cli("fetch", "job.yaml", "--set", "model=o/absent")
    assert answer.code == 3
    assert "2 of 3 are here" in answer.out and "failed" in answer.out
    assert "has no o/absent" in answer.err and "hint" in answer.err


def test_a_file_that_no_one_can_fetch_is_a_wrong_job(cli: Cli, hub: FakeHub) -> None:
    answer = cli("fetch", "job.yaml", "--set", "data.eval=absent.jsonl")
    assert answer.code == 2
    assert "data.eval" in answer.err and "no such file on this machine" in answer.err
    assert "absent" in answer.out


def test_a_wrong_job_fetches_nothing(cli: Cli, hub: FakeHub) -> None:
    assert cli("fetch", "job.yaml", "--set", "data.train=hub:nothing").code == 2
    assert not hub.requests


def test_offline_names_all_that_is_lacking_and_the_ways_out(
    cli: Cli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = cli("fetch", "job.yaml")
    assert answer.code == 3 and not hub.requests
    for words in (
        "the weights of o/m and the rows of hub:o/d (train) and the rows of hub:o/d (test)",
        "HF_HUB_OFFLINE=1 forbids the network",
        "HF_ENDPOINT",
        "modelscope:",
        "--set model=FOLDER",
    ):
        assert words in answer.err


@pytest.mark.parametrize("model", ["o/m", "modelscope:o/m"])
def test_an_unreachable_hub_is_refused_at_once(
    cli: Cli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    rows = "job.jsonl"
    Path(rows).write_text("\n".join(map(json.dumps, ROWS)))
    sets = ["--set", f"model={model}", "--set", f"data.train={rows}", "--set", "data.eval=null"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    answer = cli("fetch", "job.yaml", *sets)
    assert answer.code == 3 and time.monotonic() - began < 60  # it tries once
    assert "can't be reached" in answer.err and f"the weights of {model}" in answer.err


def test_train_fetches_what_is_missing_and_smoke_does_not(
    cli: Cli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, out = load_job("job.yaml", []), Output(as_json=True)
    facts = gather(loaded)
    assert not fetch_missing(loaded, facts, out, required=False)
    assert not hub.requests
    assert fetch_missing(loaded, facts, out)
    facts = gather(loaded)
    assert facts.model.present and all(rows.present for rows in facts.rows.values())
    assert facts.model_type == "llama" and facts.model_dtype == "bfloat16"
    assert not fetch_missing(loaded, facts, out)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load_job("job.yaml", ["model=o/other"])
    with pytest.raises(RefusedError, match="the weights of o/other are not on this machine"):
        fetch_missing(loaded, gather(loaded), out)


def test_smokes_wait_once_for_a_built_in_model_that_cannot_be_had(
    cli: Cli, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_unfetched", set())
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    sets = ["model=builtin:smollm2-135m-instruct"]
    loaded, out = load_job("job.yaml", sets), Output(as_json=False)
    assert not fetch_missing(loaded, gather(loaded), out, required=False)
    monkeypatch.setattr(preflight, "fetch", None)  # not asked again
    assert not fetch_missing(loaded, gather(loaded), out, required=False)


def test_ctrl_c_ends_it_quietly_and_the_next_one_goes_on(cli: Cli, hub: FakeHub) -> None:
    hub.repositories["o/m"].files["model.safetensors"] = os.urandom(8_000_000)
    hub.bytes_per_second = 4_000_000
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "fetch", "job.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 1800
    while not hub.asked("/cdn/") and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=1800)
    assert process.returncode == 130
    assert "Traceback" not in told and "the same command continues" in told
    hub.bytes_per_second = None
    assert cli("fetch", "job.yaml").code == 0
    assert hub.asked("/cdn/")[-1].range is not None


def test_modelscope_serves_a_whole_job(cli: Cli, hub: FakeHub) -> None:
    pytest.importorskip("modelscope_hub")
    files = hub.repositories["o/m"].files
    files["a.safetensors"] = files["b.safetensors"] = files.pop("model.safetensors")
    sets = ["model=modelscope:o/m", "data.train=modelscope:o/d", "data.eval=null"]
    arguments = [part for text in sets for part in ("--set", text)]
    answer = cli("fetch", "job.yaml", "--json", *arguments)
    assert answer.code == 0, answer
    again = json.loads(cli("fetch", "job.yaml", "--json", *arguments).out)
    first = json.loads(answer.out)
    # two files of weights: the hash of their list, the same from the listing and from the manifest
    assert [item["sha256"] for item in again["items"]] == [i["sha256"] for i in first["items"]]
    assert len(again["items"][0]["sha256"]) == 64
    facts = gather(load_job("job.yaml", sets))
    assert facts.model.present and facts.rows["data.train"].present
    assert facts.model.folder is not None and (facts.model.folder / "config.json").is_file()
