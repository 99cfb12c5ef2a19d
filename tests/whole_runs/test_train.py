"""A run from job to adapter: what it leaves, and that it can be run again without runner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plans.test_launchers import OUTSIDE
from tests.support.engine_forks import call_here, preloaded
from tests.support.workplace import Workplace, lines, termination


@pytest.mark.e2e
def test_a_run_leaves_complete_records(finished_run: Path) -> None:
    metrics = [line for line in lines(finished_run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    for line in metrics:
        for name in ("epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second"):
            assert isinstance(line[name], float | int), name
        assert line["memory_bytes"] > 50 << 20
        assert line["schema_version"] == 1
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[0]["learning_rate"] == 0.0  # warm-up starts at nothing
    end = termination(finished_run)
    assert (end["reason"], end["exit_code"], end["steps"]) == ("completed", 0, 6)
    assert end["peak_bytes"] >= max(
        sample["own_bytes"] or 0 for sample in lines(finished_run / "memory.jsonl")
    )
    assert end["peak_source"] in ("host_process_tree:pss", "host_process_tree:high_water")
    assert end["budget_bytes"] == 6 << 30
    names = {path.name for path in finished_run.iterdir()}
    assert {
        "plan.yaml",
        "launch.sh",
        "accelerate.yaml",
        "metrics.jsonl",
        "memory.jsonl",
        "termination.json",
        "checkpoints",
        "adapter",
        "logs",
    } <= names
    assert not [name for name in names if name.endswith(".tmp") or name == ".reserve"]


@pytest.mark.e2e
def test_the_adapter_loads_with_plain_peft(finished_run: Path, stories: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(str(stories))
    model = peft.PeftModel.from_pretrained(base, str(finished_run / "adapter"))
    changed = [n for n, p in model.named_parameters() if "lora_B" in n and bool(p.any())]
    assert len(changed) == 35  # 5 layers x q k v o gate up down
    assert (finished_run / "adapter" / "tokenizer.json").is_file()
    assert not list((finished_run / "adapter").glob("*.bin"))  # no pickles


@pytest.mark.e2e
def test_the_launch_script_of_a_copy_runs_the_same_again(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "a copy's place"
    shutil.copytree(finished_run, copy)
    before = (copy / "metrics.jsonl").read_text()
    done = subprocess.run(
        ["bash", str(copy / "launch.sh")],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **OUTSIDE},  # with which a run of one process once waited for ever
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("left out here:") == 1

    def losses(path: Path) -> list[float]:
        return [line["loss"] for line in lines(path) if "loss" in line]

    assert losses(copy / "metrics.jsonl") == losses(finished_run / "metrics.jsonl")
    ours = json.loads((copy / "engine" / "result.json").read_text())["adapter"]["sha256"]
    assert ours == termination(finished_run)["adapter_sha256"]
    report = Workplace(tmp_path).call("report", str(copy), "--json").json
    assert report["state"] == "by_hand" and report["result"]["completed"] is True
    # nothing of the copied run was overwritten
    assert (copy / "earlier" / "1" / "metrics.jsonl").read_text() == before
    assert (copy / "earlier" / "1" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.e2e
def test_an_edited_plan_does_not_run(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "edited"
    shutil.copytree(finished_run, copy)
    plan = copy / "plan.yaml"
    plan.write_text(plan.read_text().replace("learning_rate: 0.002", "learning_rate: 0.003"))
    done = subprocess.run(
        ["bash", str(copy / "launch.sh")], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode != 0
    assert "plan.yaml was edited" in done.stderr
    assert not (copy / "earlier").exists()


@pytest.mark.e2e
def test_report_and_chat_read_a_finished_run(finished_run: Path) -> None:
    place = Workplace(finished_run.parents[2])
    text = place.call("report", "@last")
    assert text.code == 0
    assert "completed" in text.out and "loss" in text.out and "end of turn" in text.out
    record = place.call("report", finished_run.name[:15], "--json").json
    assert record["state"] == "completed"
    assert record["data"]["train"]["end_of_turn"]["trained"] is True
    with preloaded():
        asked = ("-p", "Who are you?", "--json", "--max-new-tokens", "8")
        answer = call_here(place.folder, "chat", "@last", *asked)
    assert answer.code == 0
    assert answer.json["prompt"] == "Who are you?"
    assert isinstance(answer.json["answer"], str)
    monitor = place.call("monitor", "@last", "--once", "--json")
    assert monitor.code == 0
    assert monitor.json["run"]["name"].endswith(finished_run.name)
