"""The manifest of a recovered run: the plan that gave the results, and what was tried before it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.facts import gather
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.recovery import next_plan
from runner.engines.sft.resolve import make_plan
from runner.launch.reproduce import _recovered
from runner.provenance.manifest import read_manifest, sha256_of
from runner.provenance.recorder import ManifestRecorder
from runner.provenance.replay import plan_of
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from runner.supervisor import recovery

JOB = """
model: a/b
data: {train: rows.jsonl}
training: {max_steps: 60, per_device_train_batch_size: 4}
budget: {host_memory: 8GiB}
launch: {device: cpu}
on_oom: recover
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SftPlan:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "demo.yaml").write_text(JOB)
    loaded = load_job(str(tmp_path / "demo.yaml"))
    return make_plan(loaded, gather(loaded))


def over_budget(steps: int) -> Outcome:
    return Outcome(
        Reason.OVER_BUDGET,
        75,
        "over its budget",
        steps=steps,
        peak_bytes=9 << 30,
        checkpoint=f"checkpoints/checkpoint-{steps}",
    )


def recovered(folder: RunFolder, plan: SftPlan, outcome: Outcome) -> SftPlan:
    found = next_plan(plan, outcome, folder)
    assert found is not None
    recovery.put_in_place(folder, found[0], plan, outcome)
    return found[0]


def test_a_recovered_run_is_of_its_last_plan_and_tells_the_earlier(
    plan: SftPlan, tmp_path: Path
) -> None:
    folder = create_run(tmp_path / "runs", plan.job, plan.short_hash, "train", render(plan))
    said: list[str] = []
    keeper = ManifestRecorder(folder, said.append)
    keeper.begin(plan, resume=False)
    second = recovered(folder, plan, over_budget(7))
    third = recovered(folder, second, over_budget(9))
    end = replace(over_budget(60), reason=Reason.COMPLETED, exit_code=0)
    keeper.complete(third, end, lambda: False)
    assert said == []
    manifest = read_manifest(folder.manifest)
    assert manifest.complete and manifest.plan_hash == third.hash
    assert plan_of(manifest) == third  # what reproduce replays
    assert manifest.rendered["plan.yaml"] == sha256_of(folder.plan)
    first_tried, second_tried = manifest.attempts
    assert (first_tried.plan_hash, second_tried.plan_hash) == (plan.hash, second.hash)
    rows = "training.per_device_train_batch_size"
    assert first_tried.changed[rows] == [4, 2] and second_tried.changed[rows] == [2, 1]
    assert (first_tried.reason, first_tried.steps) == ("over_budget", 7)
    assert first_tried.checkpoint == "checkpoints/checkpoint-7"
    [line] = _recovered(manifest)
    assert "recovered at step 9" in line and rows in line


def test_an_attempt_that_can_not_be_read_is_a_note(plan: SftPlan, tmp_path: Path) -> None:
    folder = create_run(tmp_path / "runs", plan.job, plan.short_hash, "train", render(plan))
    keeper = ManifestRecorder(folder, pytest.fail)
    keeper.begin(plan, resume=False)
    second = recovered(folder, plan, over_budget(7))
    (folder.attempt(1) / "plan.yaml").write_bytes(b"\xff")
    keeper.complete(second, over_budget(8), lambda: False)
    manifest = read_manifest(folder.manifest)
    assert (manifest.complete, manifest.attempts) == (True, [])
    assert any("attempt 1 is not known" in note for note in manifest.notes)


def test_a_run_that_was_ended_in_the_queue_has_a_manifest_that_says_so(
    plan: SftPlan, tmp_path: Path
) -> None:
    folder = create_run(tmp_path / "runs", plan.job, plan.short_hash, "train", render(plan))
    why = "stopped on request while it waited; nothing was started"
    ManifestRecorder(folder, pytest.fail).never_began(plan, Outcome(Reason.STOPPED, 143, why))
    manifest = read_manifest(folder.manifest)
    assert (manifest.complete, manifest.results) == (False, None)
    assert manifest.never_began is not None
    assert (manifest.never_began.reason, manifest.never_began.message) == ("stopped", why)
    assert manifest.plan_hash == plan.hash
    assert json.loads(folder.manifest.read_text())["files"]
