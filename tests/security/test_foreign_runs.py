"""What came from elsewhere runs nothing here: a review's exploits, by the real command line."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import yaml

from runner.common.errors import RefusedError
from runner.common.output import Output
from runner.engines.inputs import found_here
from runner.engines.load import load_job
from runner.engines.recorded_plan import require_code_allowed, take_plan
from runner.engines.render import render
from runner.engines.sft.facts import gather
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.plans.base import PlannedContainer, PlannedMount
from runner.plans.plan_file import plan_yaml
from runner.runs import checkpoints
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from runner.runs.origin import origin_of
from tests.support.benches import Bench, make_bench
from tests.support.workplace import Finished, termination

FAILING = "exit 7\n"


def fail_once(bench: Bench) -> RunFolder:
    """A run of the bench's job that failed, with a checkpoint that could be gone on from."""
    done = bench.call("train", "job.yaml", "--json")
    assert done.code == 7, done.err
    run = RunFolder(Path(done.json["folder"]))
    checkpoint = run.checkpoints / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "state").write_text("1")
    checkpoints.seal(checkpoint)
    return run


@pytest.fixture
def failed(tmp_path: Path) -> tuple[Bench, RunFolder, Path]:
    """A bench, a failed run of it, and a canary that no command may make."""
    folder = tmp_path / 'a place\'s "own"'
    folder.mkdir()
    bench = make_bench(folder)
    (folder / "train.sh").write_text(FAILING)
    return bench, fail_once(bench), tmp_path / "canary"


def edit_plan(run: RunFolder, **changes: object) -> None:
    """Another plan.yaml of the same hash: what it changes is nothing that the hash stands for."""
    record = yaml.safe_load(run.plan.read_text())
    record |= changes
    run.plan.write_text(yaml.safe_dump(record, sort_keys=False))


def resumed(done: Finished) -> bool:
    return bool(done.json["resumed"])


def test_an_edited_launch_script_is_rendered_anew(failed: tuple[Bench, RunFolder, Path]) -> None:
    bench, run, canary = failed
    run.launch_script.write_text(f"touch '{canary}'\n")
    done = bench.call("train", "job.yaml", "--json")
    assert resumed(done) and Path(done.json["folder"]) == run.path
    assert not canary.exists()
    kept = [path.read_text() for path in run.earlier.glob("*/launch.sh")]
    assert kept == [f"touch '{canary}'\n"] and "launch.sh anew" in done.err


@pytest.mark.parametrize("field", ["on_end", "python"])
def test_what_a_hash_leaves_out_is_never_taken_from_a_folder(
    failed: tuple[Bench, RunFolder, Path], field: str
) -> None:
    bench, run, canary = failed
    program = canary.with_name("program")
    program.write_text(f"#!/bin/sh\ntouch '{canary}'\n")
    program.chmod(0o755)
    before = run.plan.read_text()
    edit_plan(run, **{field: str(program)})
    assert run.plan.read_text() != before
    done = bench.call("train", "job.yaml", "--json")
    assert not resumed(done) and "carries no seal" in done.err
    shutil.rmtree(done.json["folder"])
    again = bench.call("train", "job.yaml", "--json", "--resume")  # asked for: by the job's plan
    assert resumed(again) is True
    assert not canary.exists()


def test_a_run_from_a_bundle_is_not_gone_on_with(failed: tuple[Bench, RunFolder, Path]) -> None:
    bench, run, canary = failed
    run.launch_script.write_text(f"touch '{canary}'\n")
    run.bundle.write_text("{}")
    done = bench.call("train", "job.yaml", "--json")
    assert not resumed(done) and "came in a bundle: it is not resumed" in done.err
    shutil.rmtree(Path(done.json["folder"]))
    asked = bench.call("train", "job.yaml", "--resume")
    assert asked.code == 3 and "no run of this plan" in asked.err
    assert not canary.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_another_user_s_run_is_not_gone_on_with(failed: tuple[Bench, RunFolder, Path]) -> None:
    bench, run, canary = failed
    run.launch_script.write_text(f"touch '{canary}'\n")
    os.chown(run.path, 12345, 12345)
    done = bench.call("train", "job.yaml", "--json")
    assert not resumed(done) and "belongs to another user" in done.err
    assert not canary.exists()


def test_a_supervisor_starts_no_folder_on_its_own_word(
    failed: tuple[Bench, RunFolder, Path],
) -> None:
    """By hand, as `python -m runner.supervisor FOLDER`: only what carries this user's seal."""
    import subprocess
    import sys

    _, run, canary = failed
    edit_plan(run, on_end=f"touch '{canary}'")
    done = subprocess.run(
        [sys.executable, "-m", "runner.supervisor", str(run.path), "--resume"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 3 and "carries no seal" in done.stderr
    assert not canary.exists() and termination(run.path)["reason"] == "failed"


def test_modules_beside_a_stage_script_are_moved_away(tmp_path: Path) -> None:
    """mgm/ is where Python looks first for what the toolkit's stages import."""
    from runner.engines.resolve import make_any_plan
    from runner.supervisor.rendered import render_anew

    plan, _ = make_any_plan(load_job("mgm-10k-lora", ["launch.on=local"]), "train")
    run = create_run(tmp_path, plan.job, plan.short_hash, "train", render(plan))
    assert render_anew(run, plan) == []
    stages = run.path / "mgm"
    script = next(iter(stages.glob("*.py")))
    good = script.read_text()
    script.write_text("import os")
    (stages / "torch.py").write_text("raise SystemExit('planted')")
    (stages / "__pycache__").mkdir()
    (stages / "__pycache__" / "stage.cpython-311.pyc").write_bytes(b"planted")
    told = render_anew(run, plan)
    assert script.read_text() == good and not (stages / "torch.py").exists()
    assert not (stages / "__pycache__").exists()
    assert "mgm/torch.py" in told[0] and f"mgm/{script.name}" in told[1]


# --- what a record may open -----------------------------------------------------------------------


@pytest.fixture
def boxed(tmp_path: Path) -> tuple[RunFolder, SftPlan]:
    """A sealed run of a plan with all that a container and a model's code could be given."""
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "job.yaml").write_text(
        "model: a/b\ndata: {train: rows.jsonl}\ntrust_remote_code: true\non_end: touch told\n"
        "tracking: {report_to: [wandb], offline: false}\nlaunch: {device: cpu}\n"
    )
    loaded = load_job(str(tmp_path / "job.yaml"))
    plan = make_plan(loaded, gather(loaded))
    box = PlannedContainer(
        program=str(tmp_path / "evil"),
        image="x",
        image_id="sha256:" + "0" * 64,
        native=True,
        network="host",
        shm_bytes=1,
        pids=16,
        mounts=[PlannedMount(source="/", target="/host", readonly=False)],
        environment=["AWS_KEY"],
        secrets=["HF_TOKEN"],
        arguments=["--privileged"],
    )
    plan = plan.model_copy(update={"container": box})
    return create_run(tmp_path / "runs", plan.job, plan.short_hash, "train", render(plan)), plan


def test_of_a_foreign_record_nothing_opens_this_machine(boxed: tuple[RunFolder, SftPlan]) -> None:
    folder, plan = boxed
    folder.bundle.write_text("{}")
    origin = origin_of(folder.path)
    for whole in (True, False):
        taken = take_plan(
            plan, origin, program="/usr/bin/docker", python="/python", code=False, whole=whole
        )
        box = taken.plan.container
        assert box is not None and box.program == "/usr/bin/docker"
        assert (box.mounts, box.arguments, box.environment, box.secrets) == ([], [], [], [])
        assert box.network == "none" and taken.plan.on_end is None
        assert isinstance(taken.plan, SftPlan) and not taken.plan.trust_remote_code
        assert any("trust_remote_code" in line for line in taken.left_off)
    said = " ".join(taken.left_off if whole else ()) + " ".join(
        take_plan(plan, origin, program=None, python="", code=False, whole=True).left_off
    )
    for word in ("/host", "--privileged", "AWS_KEY", "HF_TOKEN", "host, it is none", "wandb"):
        assert word in said, word
    allowed = take_plan(plan, origin, program=None, python="", code=True, whole=True).plan
    assert isinstance(allowed, SftPlan) and allowed.trust_remote_code
    with pytest.raises(RefusedError, match=r"came in a bundle.*Python files"):
        require_code_allowed(plan, origin, folder.name, code=False)


def test_of_an_own_record_the_program_is_still_this_machine_s(
    boxed: tuple[RunFolder, SftPlan],
) -> None:
    folder, plan = boxed
    origin = origin_of(folder.path)
    assert origin.is_own
    taken = take_plan(plan, origin, program="/d", python="/python", code=False, whole=True)
    assert taken.left_off == () and taken.plan.container is not None
    assert taken.plan.container.program == "/d" and taken.plan.container.mounts
    assert isinstance(taken.plan, SftPlan) and taken.plan.trust_remote_code
    asked = take_plan(plan, origin, program="/d", python="/p", code=False, whole=False).plan
    assert asked.container is not None and asked.container.mounts == []


def test_the_program_of_a_record_is_not_run_by_chat_evaluate_and_merge(
    tmp_path: Path, boxed: tuple[RunFolder, SftPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.command import run_cli

    folder, _ = boxed
    canary, evil = tmp_path / "canary", tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch '{canary}'\necho '[]'\n")
    evil.chmod(0o755)
    folder.adapter.mkdir()
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))  # no docker here
    monkeypatch.delenv("RUNNER_CONTAINER_CLI", raising=False)
    for words in (["chat", "-p", "hi"], ["evaluate"], ["merge"]):
        answer = run_cli(words[0], str(folder.path), *words[1:])
        assert answer.code == 3 and "Docker is not installed" in answer.err, answer
        assert "Traceback" not in answer.err
    # the same where the program lies in the folder, by a relative path
    assert not canary.exists()


def test_a_stand_in_is_made_in_the_cache_alone(
    tmp_path: Path, boxed: tuple[RunFolder, SftPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan = boxed
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    outside = tmp_path / "home"
    outside.mkdir()
    for folder in (str(outside), "/a/..", "..", str(outside / "x" / "..")):
        model = plan.model.model_copy(update={"kind": "standin", "folder": folder})
        placed = found_here(plan.model_copy(update={"model": model}))
        assert isinstance(placed, SftPlan)
        assert Path(str(placed.model.folder)).parent == tmp_path / "cache" / "standins"


def test_reproducing_a_foreign_script_has_to_be_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    bench = make_bench(folder)
    run = bench.train()
    theirs = tmp_path / "theirs"
    shutil.copytree(run, theirs / run.parent.name / run.name)
    (theirs / run.parent.name / run.name / "origin.json").unlink()
    copied = str(theirs / run.parent.name / run.name)
    refused = bench.call("reproduce", copied)
    assert refused.code == 3, refused.err
    assert "reproducing it runs the script" in refused.err
    assert "--trust-remote-code then runs it" in refused.err
    done = bench.call("reproduce", copied, "--trust-remote-code", "--json")
    assert done.code == 0 and done.json["identical"] is True, done.err
    own = bench.call("reproduce", str(run), "--json")  # of one's own nothing has to be said
    assert own.code == 0 and own.json["identical"] is True


def test_a_manifest_that_opens_more_than_its_plan_is_foreign(tmp_path: Path) -> None:
    """manifest.json lies where a container can write; the sealed plan says what the job said."""
    folder = tmp_path / "first"
    folder.mkdir()
    bench = make_bench(folder)
    run = bench.train()
    canary = tmp_path / "canary"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["plan"]["environment"]["BASH_ENV"] = str(canary)
    from runner.engines.registry import ENGINES
    from runner.provenance.manifest import Manifest

    manifest["plan_hash"] = ENGINES["script"].plan_type.model_validate(manifest["plan"]).hash
    Manifest.model_validate(manifest)
    (run / "manifest.json").write_text(json.dumps(manifest))
    done = bench.call("reproduce", str(run))
    assert done.code == 3 and "opens other things than its sealed plan" in done.err


# --- the seal itself ------------------------------------------------------------------------------


def sealed(tmp_path: Path, text: str = "a: 1\n") -> RunFolder:
    return create_run(tmp_path / "runs", "job", "3f2a91c", "train", {"plan.yaml": text})


def test_a_seal_is_of_this_user_and_this_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_STATE", str(tmp_path / "state"))
    run = sealed(tmp_path)
    key = tmp_path / "state" / "seal.key"
    assert origin_of(run.path).is_own and stat.S_IMODE(key.stat().st_mode) == 0o600
    moved = run.path.rename(tmp_path / "elsewhere")
    assert origin_of(moved).is_own  # a run that was moved stays one's own
    for damage in (
        lambda: (moved / "plan.yaml").write_text("a: 2\n"),
        lambda: (moved / "origin.json").write_text('{"plans": ["é", 1, null]}'),
        lambda: (moved / "origin.json").write_text("[" * 60_000),
        lambda: key.unlink(),
    ):
        before = (moved / "plan.yaml").read_text(), (moved / "origin.json").read_text()
        damage()
        assert origin_of(moved).kind == "unsealed"
        (moved / "plan.yaml").write_text(before[0])
        (moved / "origin.json").write_text(before[1])


def test_another_key_seals_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_STATE", str(tmp_path / "theirs"))
    run = sealed(tmp_path)
    monkeypatch.setenv("RUNNER_STATE", str(tmp_path / "state"))
    assert origin_of(run.path).kind == "unsealed"
    again = sealed(tmp_path)
    assert origin_of(again.path).is_own and not origin_of(run.path).is_own


@pytest.mark.parametrize("mode", [0o644, 0o620])
def test_a_key_that_others_can_read_or_write_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("RUNNER_STATE", str(tmp_path / "state"))
    run = sealed(tmp_path)
    (tmp_path / "state" / "seal.key").chmod(mode)
    assert origin_of(run.path).kind == "unsealed"
    assert not origin_of(sealed(tmp_path).path).is_own  # and nothing is sealed by it


def test_a_plan_that_replaces_another_leaves_both_sealed(tmp_path: Path) -> None:
    """A kill between the seal and the plan: the old one is there, and known."""
    run = sealed(tmp_path)
    old = run.plan.read_bytes()
    run.write_rendered({"plan.yaml": "b: 2\n"})
    assert origin_of(run.path).is_own
    run.plan.write_bytes(old)
    assert origin_of(run.path).is_own


def test_a_link_or_pipe_is_no_plan(tmp_path: Path) -> None:
    run = sealed(tmp_path)
    kept = run.plan.rename(tmp_path / "plan.yaml")
    run.plan.symlink_to(kept)
    assert origin_of(run.path).kind == "unsealed"
    run.plan.unlink()
    os.mkfifo(run.plan)
    assert origin_of(run.path).kind == "unsealed"


def test_a_recovered_run_is_gone_on_with_by_its_step_down(
    tmp_path: Path, boxed: tuple[RunFolder, SftPlan]
) -> None:
    """The settings that a recovery changes are the one thing taken from a folder."""
    from runner.engines.sft.recovery import with_steps_down
    from runner.launch.resume import plan_for, write_plan

    _, plan = boxed
    small = plan.training.model_copy(
        update={"per_device_train_batch_size": 1, "learning_rate": 0.5}
    )
    lower = with_steps_down(plan, [small], ["fewer rows, after cuda_oom at step 3"])
    assert lower.training.learning_rate == plan.training.learning_rate
    run = create_run(tmp_path / "more", lower.job, plan.short_hash, "train", render(lower))
    other_end = plan.model_copy(update={"on_end": "true", "recovered_from": None})
    goes_on = plan_for(other_end, run)
    assert isinstance(goes_on, SftPlan) and goes_on.hash == lower.hash
    assert goes_on.on_end == "true" and goes_on.recovered_from == plan.hash
    write_plan(goes_on, run, Output(as_json=False))
    assert run.plan.read_text() == plan_yaml(goes_on) and origin_of(run.path).is_own
    edit_plan(run, on_end="another")
    with pytest.raises(RefusedError):
        plan_for(other_end, run)


def test_a_manifest_has_no_file_of_this_machine_hashed(tmp_path: Path) -> None:
    """Neither read nor told by its hash, whatever a manifest calls a rendered file."""
    from runner.provenance.compare import Side
    from runner.provenance.hashes import Hasher
    from runner.provenance.verify import changed_since
    from tests.support.benches import small_manifest

    secret = tmp_path / "secret"
    secret.write_text("mine")
    run = sealed(tmp_path)
    for name in (str(secret), f"../../../{secret.name}"):
        side = Side(small_manifest(rendered={name: "0" * 64}))
        (found,) = changed_since(run, side, Hasher(tmp_path / "cache"))
        assert "is outside of the run" in found.text and found.other is None
