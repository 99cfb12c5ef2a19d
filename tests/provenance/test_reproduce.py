"""`runner reproduce`: from the manifest alone, refused where an input is another, then verified."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.provenance.conftest import Bench, manifest_of
from tests.runs.conftest import Workplace, termination


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
    (bench.place.folder / "rows.txt").write_text("".join(f"{n}.5\n" for n in range(30)))
    run = bench.train("environment.PAUSE='0.1'")
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
    from runner.runs.folder import runs_of

    run = bench.train()
    assert bench.call("reproduce", str(run)).code == 0
    root = run.parent.parent
    plan_hash = manifest_of(run)["plan_hash"][:7]
    assert [found.path for found in runs_of(root, "job", plan_hash)] == [run]


@pytest.mark.slow
def test_a_training_is_reproduced_to_the_bit(finished_run: Path) -> None:
    place = Workplace(finished_run.parents[2])
    record = manifest_of(finished_run)
    rows = record["rows"][""]
    assert rows["counts"] == {"train": 86, "eval": 5, "test": 0}
    assert set(rows["split_sha256"]) == {"train", "eval"}
    assert record["seeds"]["training.seed"] >= 0
    assert record["switches"]["deterministic_algorithms"] is False
    assert record["stack"]["torch"].startswith("2.")
    weights = {each["what"]: each["sha256"] for each in record["files"]}
    assert weights["model/model.safetensors"] and weights["model/config.json"]
    done = place.call("reproduce", str(finished_run), "--json")
    assert done.code == 0, done.out + done.err
    again = Path(done.json["folder"])
    assert termination(again)["adapter_sha256"] == termination(finished_run)["adapter_sha256"]
    assert manifest_of(again)["rows"] == record["rows"]


@pytest.mark.slow
def test_one_byte_of_a_trainings_rows_is_named(
    finished_run: Path, small_job: list[str], identity_rows: Path, tmp_path: Path
) -> None:
    place = Workplace(finished_run.parents[2])
    rows = tmp_path / "rows.jsonl"
    text = identity_rows.read_text()
    assert "MiniMind" in text
    rows.write_text(text.replace("MiniMind", "MiniMine", 1))
    done = place.call("train", *small_job, "--set", f"data.train={rows}", "--json")
    assert done.code == 0, done.err
    told = place.call("verify", str(finished_run), done.json["folder"])
    assert told.code == 1
    assert told.out.startswith("different  files: data.train: ")
    assert (
        "other rows are in train" in place.call("diff", str(finished_run), done.json["folder"]).out
    )
