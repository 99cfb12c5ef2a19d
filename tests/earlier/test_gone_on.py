"""Runs, bundles and results of 29e1337 are gone on with, repeated and used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runner.common import durable
from runner.provenance.bundle.local_plan import plan_here
from runner.runs.folder import RunFolder
from runner.runs.origin import origin_of
from tests.earlier.conftest import DATA, EarlierWork, Unpack

pytest.importorskip("torch")


@pytest.fixture
def work(unpack: Unpack) -> EarlierWork:
    return unpack()


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in durable.read_jsonl(run / "metrics.jsonl") if "loss" in line]


def deciding_groups(compared: dict[str, Any]) -> set[str]:
    """In which respects two runs differ, of those that decide the outcome."""
    return {each["group"] for each in compared["differences"] if each["decides"]}


@pytest.mark.e2e
def test_the_stopped_one_is_gone_on_with_to_its_end(work: EarlierWork) -> None:
    """By --resume, since it carries no seal of this user's (docs/security.md)."""
    losses = steps_of(work.stopped)
    assert losses[-1] == 20
    sets = ("max_steps=160", "save_steps=80", "logging_steps=5")
    command = ["train", "job.yaml", *(x for one in sets for x in ("--set", f"training.{one}"))]
    done = work.start(*command, "--resume")
    assert done.code == 0, done.err
    assert "checkpoint-22" in done.err
    end = json.loads((work.stopped / "termination.json").read_text())
    assert (end["reason"], end["steps"], end["max_steps"]) == ("completed", 160, 160)
    assert steps_of(work.stopped)[: len(losses)] == losses
    assert steps_of(work.stopped)[-1] == 160
    assert sorted(x.name for x in (work.folder / "runs/job").iterdir()) == [
        work.completed.name,
        work.stopped.name,
    ]
    assert origin_of(work.stopped).is_own  # from now on
    assert (work.stopped / "adapter/adapter_model.safetensors").is_file()


def test_without_being_asked_none_of_them_is_gone_on_with(work: EarlierWork) -> None:
    from runner.common.output import Output
    from runner.engines.render import read_any_plan
    from runner.launch.resume import choose

    root = work.folder / "runs"
    out = Output(as_json=True)
    plan = read_any_plan(work.stopped / "plan.yaml")
    assert choose(plan, root, None, out) is None
    assert choose(plan, root, "resume", out) == RunFolder(work.stopped)


@pytest.mark.e2e
def test_the_script_is_repeated_and_gives_the_same(work: EarlierWork) -> None:
    """Only the versions differ, of which runner's own is one that decides: 1, not 0."""
    done = work.start("reproduce", str(work.script), "--trust-remote-code", "--json")
    assert done.code == 1, done.err
    assert deciding_groups(done.json) == {"versions"}
    texts = [each["text"] for each in done.json["differences"] if each["decides"]]
    assert any("runner's code" in text for text in texts)


@pytest.mark.e2e
def test_a_bundle_is_unpacked_and_its_run_repeated(work: EarlierWork) -> None:
    """With the model's folder and the rows that came along; nothing else is on this machine."""
    unpacked = work.call("unbundle", str(DATA / "folder-model.tar.gz"), "there", "--json")
    assert unpacked.code == 0, unpacked.err
    run = work.folder / "there"
    assert "completed" in work.call("report", str(run)).out
    done = work.start("reproduce", str(run), "--json")
    assert done.code == 1, done.err
    assert deciding_groups(done.json) <= {
        *("versions", "machine"),
        *("losses", "results"),  # another CPU may round otherwise
    }
    again = Path(done.json["folder"])
    before, after = (
        [line["loss"] for line in durable.read_jsonl(x / "metrics.jsonl") if "loss" in line]
        for x in (run, again)
    )
    assert len(before) == 4
    assert after == pytest.approx(before, rel=1e-4)


def test_a_script_bundle_is_unpacked_and_verifies(work: EarlierWork) -> None:
    unpacked = work.call("unbundle", str(DATA / "script.tar.gz"), "there", "--json")
    assert unpacked.code == 0, unpacked.err
    answer = work.call("verify", "there", str(work.script))
    assert answer.code == 0, answer.out + answer.err


def test_what_was_trained_is_merged_asked_and_measured(
    work: EarlierWork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runner.engines.sft.inside.chat import Talker
    from runner.engines.sft.inside.evaluate.evaluation import evaluate
    from runner.engines.sft.inside.evaluate.request import EvaluationFolder, Request
    from runner.engines.sft.inside.evaluate.state import State
    from runner.engines.sft.inside.merge import merge

    run = RunFolder(work.completed)
    plan = plan_here(run)
    merged = merge(run, plan, tmp_path / "merged", None)
    assert merged["adapter_sha256"].startswith("d631438d24ad")
    talker = Talker(run, plan, base=True, max_new_tokens=3)
    assert [speaker.name for speaker in talker.speakers] == ["run", "base"]
    assert all(talker.answer(speaker, "What is red?") for speaker in talker.speakers)
    place = EvaluationFolder(tmp_path / "evaluation")
    place.path.mkdir()
    settings = plan.evaluation.model_copy(update={"max_new_tokens": 2})
    request = Request("it", run.path, run.plan, [], False, settings)
    evaluate(request, plan, place, State(place, os.getppid()))
    record = json.loads(place.evaluation.read_text())
    assert record["complete"] is True
