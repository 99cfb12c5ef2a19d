"""`runner merge` as a user calls it, on the run folders of real trainings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli.merge import lines, merge_run
from runner.common.errors import RefusedError, UsageError
from runner.provenance.bundle.local_plan import plan_here
from runner.runs.folder import RunFolder
from tests.engines.sft.methods import METHODS, plan_of, train
from tests.support.engine_forks import call_here, preloaded
from tests.support.workplace import Workplace

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, preloaded():
        patch.setenv("RUNNER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def runs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model, rows = shared / "models" / "stories260k", shared / "data" / "lora_identity.jsonl"
    return {
        name: train(
            plan_of(model, rows, **METHODS[name]), tmp_path_factory.mktemp(name)
        ).folder.path
        for name in ("nf4", "prefix", "full")
    }


def test_a_run_is_merged_once_and_said_so(
    runs: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    run, target = str(runs["nf4"]), runs["nf4"] / "merged"
    assert merge_run(run, out=None, dtype="bf16", runs=None, as_json=True) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["folder"] == str(target) and record["dtype"] == "bf16"
    assert (target / "config.json").is_file()
    told = "\n".join(lines(record))
    assert f"merged     {target}: bf16" in told
    assert "on 8 rows of the run: logits differ by at most" in told
    assert "the quantized model that was trained" in told
    with pytest.raises(RefusedError, match="is there already; nothing is overwritten"):
        merge_run(run, out=None, dtype=None, runs=None, as_json=False)


@pytest.mark.parametrize(
    ("method", "told"), [("prefix", "can't be merged"), ("full", "whole already, in")]
)
def test_what_cannot_be_merged_is_refused(method: str, told: str, runs: dict[str, Path]) -> None:
    with pytest.raises(RefusedError, match=told):
        merge_run(str(runs[method]), out=None, dtype=None, runs=None, as_json=False)
    assert not (runs[method] / "merged").exists()


def test_a_number_format_that_there_is_not_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="float16"):
        merge_run(str(runs["nf4"]), out=None, dtype="float16", runs=None, as_json=False)


def test_a_run_without_a_result_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    unfinished = tmp_path / "tiny" / "20260101-000000-0000000"
    unfinished.mkdir(parents=True)
    (unfinished / "plan.yaml").write_bytes((runs["nf4"] / "plan.yaml").read_bytes())
    with pytest.raises(RefusedError, match="no finished adapter"):
        merge_run(str(unfinished), out=None, dtype=None, runs=None, as_json=False)


def test_a_run_that_came_in_a_bundle_answers_and_merges_by_the_weights_that_came_along(
    place: Workplace, finished_run: Path
) -> None:
    made = call_here(
        place.folder, "bundle", str(finished_run), "--with", "data,model,adapter", "-o", "x.tar"
    )
    assert made.code == 0, made.err
    there = place.folder / "there"
    assert call_here(place.folder, "unbundle", "x.tar", str(there)).code == 0
    plan = plan_here(RunFolder(there))
    assert Path(plan.model.folder or "").is_relative_to(there)
    assert Path(plan.rows.train.path or "").is_relative_to(there)
    # the plan beside it stays as it was made, and its places there are not looked at
    old = (there / "plan.yaml").read_text()
    assert str(there) not in old
    answers = [
        call_here(place.folder, "chat", str(run), "-p", "Who are you?", "--json")
        for run in (finished_run, there)
    ]
    assert [each.code for each in answers] == [0, 0], answers
    assert answers[0].json["answer"] == answers[1].json["answer"]
    merged = call_here(place.folder, "merge", str(there), "--out", "merged")
    assert merged.code == 0, merged.err
    assert (place.folder / "merged" / "model.safetensors").is_file()
