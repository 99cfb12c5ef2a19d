"""What 29e1337 recorded is read as before: report, ps, verify, diff, checkpoints, manifests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from runner.engines.render import read_any_plan
from runner.provenance.compare import Side, differences
from runner.provenance.manifest import read_manifest
from runner.provenance.replay import plan_of
from runner.runs import checkpoints
from runner.runs.origin import origin_of
from tests.earlier.conftest import EarlierWork, Unpack


@pytest.fixture
def work(unpack: Unpack) -> EarlierWork:
    return unpack()


@pytest.mark.parametrize("moved", [False, True], ids=["in place", "copied from elsewhere"])
def test_every_plan_has_the_hash_that_its_run_is_named_by(moved: bool, unpack: Unpack) -> None:
    """read_any_plan refuses a plan whose hash is not the recorded one."""
    work = unpack(moved=moved)
    for run in work.runs:
        plan, manifest = read_any_plan(run / "plan.yaml"), read_manifest(run / "manifest.json")
        assert plan.short_hash == run.name[-7:]
        assert manifest.plan_hash == plan.hash == plan_of(manifest).hash
        assert manifest.run == f"{run.parent.name}/{run.name}"
        assert manifest.code.commit == "29e1337de2b130778e263c6fdf6e9fd179c42253"


def test_every_checkpoint_is_whole_by_its_seal(work: EarlierWork) -> None:
    for run, steps in ((work.completed, (3, 6)), (work.stopped, (22,))):
        for step in steps:
            assert checkpoints.damage(run / f"checkpoints/checkpoint-{step}") is None
        newest, passed_over = checkpoints.newest_whole(run / "checkpoints")
        assert newest == run / f"checkpoints/checkpoint-{steps[-1]}"
        assert not passed_over


def test_a_damaged_checkpoint_of_then_is_seen_to_be_damaged(work: EarlierWork) -> None:
    weights = work.completed / "checkpoints/checkpoint-6/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    newest, passed_over = checkpoints.newest_whole(work.completed / "checkpoints")
    assert newest == work.completed / "checkpoints/checkpoint-3"
    assert passed_over


def test_a_run_of_then_carries_no_seal_and_is_not_taken_for_ones_own(work: EarlierWork) -> None:
    assert {origin_of(run).kind for run in work.runs} == {"unsealed"}


def test_ps_lists_them_and_the_way_to_go_on(work: EarlierWork) -> None:
    answer = work.call("ps", "--all", "--json")
    assert answer.code == 0, answer.err
    rows = {row["run"]: row for row in json.loads(answer.out)["runs"]}
    told = {
        name: (row["state"], row["step"], row["max_steps"], row["goes_on_from"])
        for name, row in rows.items()
    }
    done = "its stages that are done (cap, convert)"
    assert told == {
        "job/20261130-210255-563a57d": ("completed", 6, 6, None),
        "job/20261130-210446-4255e16": ("stopped", 20, 160, "checkpoint-22"),
        "script/20261130-210547-cd520c9": ("completed", 0, None, None),
        "tiny/20261130-210830-b39e122": ("failed", 0, None, done),
    }
    assert all(row["damaged"] == [] and row["newer"] is None for row in rows.values())
    command = rows["job/20261130-210446-4255e16"]["goes_on_by"]
    assert command.startswith("runner train job.yaml --set training.max_steps=160")
    assert command.endswith("--resume")


def test_report_says_what_they_did(work: EarlierWork) -> None:
    for run, code, words in (
        (work.completed, 0, ("6 of 6 steps", "5.557", "685 MiB", "d631438d24ad")),
        (work.stopped, 0, ("20 of 160 steps", "checkpoint-22", "143")),
        (work.script, 0, ("completed", "fit_line.py")),
        (work.mgm, 0, ("failed", "exited with code 1", "runner train zoo/tiny.yaml --resume")),
    ):
        answer = work.call("report", str(run))
        assert answer.code == code, answer.err
        assert not [word for word in words if word not in answer.out], answer.out
        assert not [
            word for word in ("damaged", "can't be read") if word in answer.out + answer.err
        ]


def test_logs_are_shown(work: EarlierWork) -> None:
    answer = work.call("logs", str(work.mgm))
    assert answer.code == 0, answer.err
    assert answer.out.strip()


def test_a_run_verifies_with_a_copy_of_itself(work: EarlierWork) -> None:
    for run in (work.completed, work.script):
        copy = shutil.copytree(run, run.with_name(f"{run.name}-copy"))
        answer = work.call("verify", str(run), str(copy))
        assert answer.code == 0, answer.out + answer.err
        assert "identical" in answer.out


def test_what_an_earlier_runner_did_not_know_is_no_difference(work: EarlierWork) -> None:
    """Against a plan of today with another hash, as of a bundle whose model lies elsewhere now."""
    manifest = read_manifest(work.completed / "manifest.json")
    assert "special_tokens" not in manifest.plan["data"]
    plan = plan_of(manifest)
    later = plan.model_copy(update={"job": "another"})
    other = manifest.model_copy(
        update={"plan": later.model_dump(mode="json"), "plan_hash": later.hash}
    )
    found = differences(Side(manifest, []), Side(other, []))
    assert {each.what for each in found if each.decides} == {"job"}


def test_two_of_them_differ_where_they_do(work: EarlierWork) -> None:
    answer = work.call("verify", str(work.completed), str(work.stopped))
    assert answer.code == 1, answer.err
    assert "training." in answer.out
    answer = work.call("diff", str(work.completed), str(work.stopped))
    assert answer.code == 0, answer.err
    for name in ("training.max_steps", "training.save_steps", "training.logging_steps"):
        assert name in answer.out


def test_pruning_and_removing_take_them(work: EarlierWork) -> None:
    answer = work.call("rm", str(work.completed), "--yes")
    assert answer.code == 0, answer.err
    assert not work.completed.exists()
    assert work.stopped.is_dir()


def test_their_launch_scripts_find_the_engine(work: EarlierWork) -> None:
    """By hand, without `runner`: the part of launch.sh before the launcher."""
    run = work.completed
    assert "-m runner.engine " in (run / "launch.sh").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "runner.engine", str(run), "--prepare"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (run / "earlier" / "1").is_dir()
