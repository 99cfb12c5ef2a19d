"""`runner reproduce`: from the manifest alone, refused where an input is another, then verified."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.engines.inputs import relocated
from runner.engines.render import read_any_plan, render
from runner.engines.sft.plan import SftPlan
from runner.provenance.manifest import sha256_of
from runner.provenance.recorder import ManifestRecorder
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from tests.support.benches import Bench, manifest_of
from tests.support.command import Answer
from tests.support.workplace import Workplace, termination

pytestmark = pytest.mark.e2e


def test_a_manifest_alone_is_enough(bench: Bench) -> None:
    run = bench.train()
    alone = bench.place.folder / "alone"
    alone.mkdir()
    shutil.copy(run / "manifest.json", alone)
    shutil.rmtree(run)
    (bench.place.folder / "job.yaml").unlink()
    refused = bench.call("reproduce", str(alone))  # anybody could have written it
    assert refused.code == 3 and "--trust-remote-code then runs it" in refused.err
    done = bench.call("reproduce", str(alone), "--trust-remote-code", "--json")
    assert done.code == 0, done.err
    assert done.json["identical"] is True
    made = manifest_of(Path(done.json["folder"]))
    assert made["reproduces"]["run"] == manifest_of(alone)["run"]
    assert made["plan_hash"] == manifest_of(alone)["plan_hash"]
    assert Path(done.json["folder"]).name.endswith("-replay")


def test_a_changed_or_missing_input_is_named_before_the_start(bench: Bench) -> None:
    run = bench.train()
    rows = bench.place.folder / "rows.txt"
    rows.write_text("3.0\n2.5\n2.26\n")
    changed = bench.call("reproduce", str(run))
    assert changed.code == 3
    assert "inputs.0" in changed.err and "is another file than the run read" in changed.err
    rows.unlink()
    missing = bench.call("reproduce", str(run))
    assert missing.code == 3 and f"{rows} is not here" in missing.err
    assert len(list(run.parent.iterdir())) == 1  # nothing was made


def test_a_result_that_is_another_is_told_by_its_step(bench: Bench) -> None:
    # it keeps no promise: it counts its own starts, in a file that the plan does not know
    counter = shlex.quote(str(bench.place.folder / "count"))
    line = '{\\"step\\": 1, \\"loss\\": $n.5, \\"time_unix_seconds\\": 1}'
    (bench.place.folder / "train.sh").write_text(
        f'echo x >> {counter}\nn=$(wc -l < {counter})\necho "{line}" >> ../metrics.jsonl\n'
    )
    run = bench.train()
    done = bench.call("reproduce", str(run))
    assert done.code == 1, done.out + done.err
    assert done.out.startswith("different  losses: step 1: loss 1.5 → 2.5 (by +1)")


def test_the_first_steps_are_enough_where_asked(bench: Bench) -> None:
    """The replay hangs at its fifth step, of which the plan says nothing, until it is stopped."""
    (bench.place.folder / "rows.txt").write_text("".join(f"{n}.5\n" for n in range(30)))
    slow, script = bench.place.folder / "slow", bench.place.folder / "train.sh"
    hang = f'[[ $step == 5 && -e {shlex.quote(str(slow))} ]] && sleep 900\n  sleep "$PAUSE"'
    script.write_text(script.read_text().replace('sleep "$PAUSE"', hang))
    run = bench.train()
    slow.touch()
    done = bench.call("reproduce", str(run), "--steps", "3")
    assert done.code == 0, done.out + done.err
    assert "the first 3 steps, bit for bit" in done.out
    replay = next(path for path in run.parent.iterdir() if path.name.endswith("-replay"))
    end = termination(replay)
    assert end["reason"] == "stopped" and 3 <= end["steps"] < 30


def test_words_that_mean_no_place_and_edited_plans_are_refused(bench: Bench) -> None:
    run = bench.train()
    wrong = bench.call("reproduce", str(run), "--on", "dokcer")
    assert wrong.code == 2 and "nearest: docker" in wrong.err
    record = manifest_of(run)
    record["plan"]["environment"]["RATE"] = "7"
    (run / "manifest.json").write_text(json.dumps(record))
    edited = bench.call("reproduce", str(run))
    assert edited.code == 1 and "it was edited" in edited.err


def test_a_later_train_does_not_go_on_with_a_replay(bench: Bench) -> None:
    from runner.runs.find import runs_of

    run = bench.train()
    assert bench.call("reproduce", str(run)).code == 0
    root = run.parent.parent
    plan_hash = manifest_of(run)["plan_hash"][:7]
    assert [found.path for found in runs_of(root, "job", plan_hash)] == [run]


def test_a_training_is_reproduced_to_the_bit_from_its_bundle(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With model and rows, in another folder; a bare reproduce does the same but for the places."""
    record = manifest_of(finished_run)
    # libraries that other tests import here set such variables, which decide bits
    for name in {*os.environ, *record["environment"]}:
        if name.startswith("KMP_"):
            monkeypatch.delenv(name, raising=False)
            if name in record["environment"]:
                monkeypatch.setenv(name, record["environment"][name])
    rows = record["rows"][""]
    assert rows["counts"] == {"train": 86, "eval": 5, "test": 0}
    assert set(rows["split_sha256"]) == {"train", "eval"}
    assert record["seeds"]["training.seed"] >= 0
    assert record["switches"]["deterministic_algorithms"] is False
    assert record["stack"]["torch"].startswith("2.")
    weights = {each["what"]: each["sha256"] for each in record["files"]}
    assert weights["model/model.safetensors"] and weights["model/config.json"]
    place = Workplace(tmp_path)
    words = ["--with", "data,model", "-o", "b.tar", "--runs", str(finished_run.parents[1])]
    packed = place.call("bundle", finished_run.name, *words)
    assert packed.code == 0, packed.err
    unpacked = place.call("unbundle", "b.tar", "there", "--json")
    assert unpacked.code == 0, unpacked.err
    done = place.call("reproduce", "there", "--json")
    assert done.code == 0, done.out + done.err
    assert done.json["identical"] is True
    again = Path(done.json["folder"])
    assert termination(again)["adapter_sha256"] == termination(finished_run)["adapter_sha256"]
    made = manifest_of(again)
    assert made["rows"] == record["rows"]
    assert all(each["path"].startswith(str(tmp_path / "there")) for each in made["files"])


def test_one_byte_of_a_trainings_rows_is_named(
    finished_run: Path,
    identity_rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Answer],
) -> None:
    """The run that other rows would have left: its rows are prepared, and its weights the same."""
    from runner.data.prepare import prepare

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as of the run, which another plan would be without
    rows = tmp_path / "rows.jsonl"
    text = identity_rows.read_text()
    assert "MiniMind" in text
    rows.write_text(text.replace("MiniMind", "MiniMine", 1))
    was = read_any_plan(finished_run / "plan.yaml")
    plan = relocated(was, {"data.train": str(rows)})
    assert isinstance(plan, SftPlan)
    known = plan.rows.train.model_copy(update={"sha256": sha256_of(rows)})
    plan = plan.model_copy(update={"rows": plan.rows.model_copy(update={"train": known})})
    folder = RunFolder(tmp_path / "runs" / "demo-identity" / finished_run.name)
    shutil.copytree(finished_run, folder.path)
    for name, content in render(plan).items():
        (folder.path / name).write_text(content)
    report = json.loads(folder.data_report.read_text())
    report["split_sha256"] = prepare(plan, say=lambda _: None).split_hashes()
    folder.data_report.write_text(json.dumps(report))
    keeper = ManifestRecorder(folder, pytest.fail)
    keeper.begin(plan, resume=False)
    end = termination(finished_run)
    times = {name: end[name] for name in ("started_unix_seconds", "ended_unix_seconds")}
    results = {"steps": end["steps"], "adapter_sha256": end["adapter_sha256"], **times}
    keeper.complete(plan, Outcome(Reason.COMPLETED, 0, end["message"], **results), lambda: False)

    told = cli("verify", str(finished_run), str(folder.path))
    assert told.code == 1
    assert told.out.startswith("different  files: data.train: ")
    assert "other rows are in train" in cli("diff", str(finished_run), str(folder.path)).out
