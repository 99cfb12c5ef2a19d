"""Code in a run's container attacks the host by its run folder, the caches and its own id.

The attacks run in real containers, where a daemon can be had; the rest is looked at as values.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RunnerError
from runner.containers import private
from runner.containers.in_place import open_own, write_in_place
from runner.containers.staged import staged_beside
from runner.engines.mounts import plan_mounts
from runner.plans.base import PlannedContainer, PlannedMount
from runner.plans.container.argv import secret_names
from runner.plans.container.overlays import fixed_above, make_places, run_overlays
from runner.plans.engine_command import question
from runner.runs import recover as unfinished
from runner.runs.folder import RunFolder
from runner.runs.planted_links import remove_planted
from runner.supervisor.execute.docker import docker_argv
from tests.containers.test_argv import after
from tests.engines.sft.tiny import plan_of
from tests.support.containers import (
    Bench,
    ended,
    log,
    private_of,
    started,
    supervisor_of,
    wait_until,
)
from tests.support.workplace import termination

ATTACKS = r"""
RUN="$(dirname "$RUNNER_OUTPUT")"
cd "$RUN"
for file in plan.yaml launch.sh sources.json supervisor.json container.json container.id .lock \
    events.jsonl memory.jsonl manifest.json .verdict .reserve logs/container.log \
    logs/supervisor.log; do
  [[ -e $file ]] || { echo "not there: $file"; continue; }
  (echo pwned >"$file") 2>/dev/null && echo "written: $file"
  (echo pwned >>"$file") 2>/dev/null && echo "appended: $file"
  rm -f -- "$file" 2>/dev/null && echo "removed: $file"
  mv -f -- "$file" "$file.away" 2>/dev/null && echo "moved: $file"
  ln -sfn -- "$CANARY/file" "$file" 2>/dev/null && echo "linked: $file"
  echo pwned >.forged && mv -f .forged "$file" 2>/dev/null && echo "replaced: $file"
done
for folder in logs engine earlier attempts; do
  mv -- "$folder" "$folder.away" 2>/dev/null && echo "moved: $folder"
  rmdir -- "$folder" 2>/dev/null && echo "removed: $folder"
done
for folder in earlier attempts; do
  mkdir "$folder/1" 2>/dev/null && echo "made: $folder/1"
done
for name in phases checkpoints row-hashes evaluations adapter termination.json advice.json; do
  rm -rf -- "$name" 2>/dev/null
  ln -s -- "$CANARY" "$name"
done
ln -s -- "$CANARY/file" images.sha256
ln -s -- "$CANARY/file" engine/failure.json
mkdir -p "$RUNNER_CACHE/hashes" 2>/dev/null && echo "made: hashes"
echo "attacked"
"""
TICKS = "for ((i = 0; i < 6000; i++)); do sleep 0.1; done\n"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What an attack wants to reach: a folder like a home folder."""
    folder = tmp_path / "canary"
    (folder / ".secret").mkdir(parents=True)
    (folder / ".secret" / "key").write_text("a key")
    (folder / "file").write_text("untouched")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def attack(bench: Bench, canary: Path, body: str = "") -> str:
    return bench.script(ATTACKS + body, environment={"CANARY": str(canary)})


def test_nothing_that_the_host_trusts_can_be_changed_from_inside(
    bench: Bench,
    canary: Path,
) -> None:
    before = content(canary)
    done = bench.place.call("train", attack(bench, canary))
    run = bench.place.last
    assert log(run).splitlines() == ["attacked"]
    assert done.code == 0, done.err
    assert content(canary) == before
    end = termination(run)
    assert (end["reason"], end["exit_code"]) == ("completed", 0)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    told = [event["text"] for event in events if event["kind"] == "warning"]
    assert any(f"phases, a link to {canary}" in text for text in told), told
    assert not any(path.is_symlink() for path in run.rglob("*"))
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["complete"] and manifest["job"]["name"] == "job"


def test_a_run_whose_supervisor_was_killed_leaves_no_trap_for_the_next_start(
    bench: Bench,
    canary: Path,
) -> None:
    """What it left half made is cleared by patterns, which a link had lead into a home folder."""
    before = content(canary)
    job = attack(bench, canary, "echo tick\n" + TICKS)
    process, run = started(bench, job)
    supervisor_of(run).kill()
    ended(process)
    wait_until(lambda: bench.containers(run.absolute()) == [])
    assert (run / "phases").is_symlink()
    again = bench.place.call("train", job, "--resume", "--set", "timeout_minutes=0.05")
    assert "Traceback" not in again.err
    assert content(canary) == before


def test_the_id_is_the_daemons_and_others_can_read_it(
    bench: Bench,
    canary: Path,
) -> None:
    process, run = started(bench, attack(bench, canary, "echo tick\n" + TICKS))
    identity = (run / "container.id").read_text().strip()
    seen = bench.inspect(run.absolute())
    assert identity == seen["Id"]
    sources = [mount["Source"] for mount in seen["Mounts"]]
    assert not any("/dev/shm" in source for source in sources)  # no secrets, and never the id
    bench.place.call("stop")
    ended(process)
    assert not (run / "container.id").exists()
    assert private_of(run) == []


def test_a_script_in_a_writable_folder_does_not_reach_the_runs_that_lie_in_it(
    bench: Bench,
    canary: Path,
) -> None:
    first = bench.place.call("train", bench.script("echo tick", name="other"))
    assert first.code == 0, first.err
    other = bench.place.last
    body = f"""
    cd {json.dumps(str(bench.place.folder.name))} 2>/dev/null
    cd "$(dirname "$RUNNER_OUTPUT")/../.."
    mv ../runs ../runs.away && echo "moved runs"
    echo pwned >other/*/plan.yaml && echo "written"
    rm -rf other/* && echo "removed"
    echo attacked
    """
    kept = content(other)
    done = bench.place.call("train", bench.script(body, workdir="source"))
    assert done.code == 0, done.err
    assert [line for line in log(bench.place.last).splitlines() if ": " not in line] == ["attacked"]
    assert content(other) == kept


def box(**changes: Any) -> PlannedContainer:
    settings: dict[str, Any] = {
        "program": "/a/program/of/a/record",
        "image": "theirs:1",
        "image_id": "sha256:" + "0" * 64,
        "native": True,
        "network": "none",
        "shm_bytes": 1 << 30,
        "pids": 100,
        **changes,
    }
    return PlannedContainer(**settings)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container program of this machine that answers as a daemon would."""
    info = {"ServerVersion": "28.0", "CgroupVersion": "2", "SecurityOptions": []}
    made = tmp_path / "bin" / "docker"
    made.parent.mkdir()
    made.write_text(f"#!/bin/sh\necho '{json.dumps(info)}'\n")
    made.chmod(0o755)
    monkeypatch.setenv("RUNNER_CONTAINER_CLI", str(made))
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return made


def mounts_of(argv: list[str]) -> dict[str, bool]:
    """Target to whether it can be written."""
    found = {}
    for text in after(argv, "--mount"):
        parts = text.split(",")
        found[parts[2].removeprefix("target=")] = "readonly" not in parts[3:]
    return found


def test_the_program_of_a_record_is_never_run(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/pwned\n")
    trap.chmod(0o755)
    asked = question(box(program=str(trap)), ["runner.engines.sft.inside.chat"])
    assert asked.argv[0] == str(program)
    asked.abandon()
    run = RunFolder(tmp_path / "runs" / "x" / "1")
    run.path.mkdir(parents=True)
    plan = plan_of().model_copy(update={"container": box(program=str(trap))})
    assert docker_argv(run, plan)[0] == str(program)
    assert not (tmp_path / "pwned").exists()


def test_of_the_cache_only_what_a_process_makes_can_be_written(
    tmp_path: Path, program: Path
) -> None:
    cache = tmp_path / "cache"
    run = RunFolder(tmp_path / "runs" / "x" / "1")
    run.path.mkdir(parents=True)
    plan = plan_of().model_copy(update={"container": box()})
    of_run = mounts_of(docker_argv(run, plan))
    assert {t for t, w in of_run.items() if w and t.startswith(str(cache))} == {f"{cache}/prepared"}
    assert of_run[str(cache)] is False
    asked = mounts_of(question(box(), ["m"], reads=plan_mounts(plan, run.path, cache)).argv)
    assert {t for t, w in asked.items() if w and t.startswith(str(cache))} == {f"{cache}/prepared"}
    reading = plan_mounts(plan, run.path, cache, run_writable=False)
    asked = mounts_of(question(box(), ["m"], reads=reading).argv)
    assert not any(asked.values())
    asked = mounts_of(question(box(), ["m"], caches=["vram"]).argv)
    assert {t for t, w in asked.items() if w} == {f"{cache}/vram"}
    fetched = mounts_of(question(box(), ["m"], online=True).argv)
    writable = {t for t, w in fetched.items() if w}
    assert writable == {
        *(f"{cache}/{name}" for name in ("data", "models", "modelscope")),
        str(tmp_path / "hub"),
    }


def test_a_records_own_mounts_are_left_out_on_request(tmp_path: Path) -> None:
    mount = PlannedMount(source="/", target="/host", readonly=False)
    plan = plan_of().model_copy(update={"container": box(mounts=[mount])})
    with_them = plan_mounts(plan, None, tmp_path)
    without = plan_mounts(plan, None, tmp_path, own_mounts=False)
    assert [m for m in with_them if m not in without] == [mount]


def test_a_questions_writable_run_folder_keeps_its_control_files(
    tmp_path: Path, program: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("plan.yaml", "launch.sh", "origin.json"):
        (run / name).write_text("x")
    found = mounts_of(question(box(), ["runner.engines.sft.inside.merge"], writes=[run]).argv)
    assert found[str(run)] is True
    assert [found[f"{run}/{name}"] for name in ("plan.yaml", "launch.sh", "origin.json")] == [
        *(False, False, False)
    ]


def test_links_where_the_host_would_write_are_replaced_before_the_start(tmp_path: Path) -> None:
    run, outside = RunFolder(tmp_path / "run"), tmp_path / "outside"
    run.path.mkdir()
    outside.mkdir()
    (outside / "file").write_text("untouched")
    for name in ("logs", "attempts", "earlier"):
        (run.path / name).symlink_to(outside)
    (run.path / "events.jsonl").symlink_to(outside / "file")
    (run.path / "memory.jsonl").symlink_to(outside / "new")
    make_places(run)
    assert content(outside) == {"file": "untouched"}
    assert not any(path.is_symlink() for path in run.path.rglob("*"))
    closed = {mount.target for mount in run_overlays(run) if mount.readonly}
    assert {str(run.events), str(run.memory), str(run.attempts), str(run.earlier)} <= closed


def test_what_a_kill_left_is_not_cleared_through_a_link(tmp_path: Path, canary: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (canary / ".half.tmp").write_text("x")
    (canary / ".adapter.replaced").mkdir()
    before = content(canary)
    for name in ("phases", "attempts", "checkpoints", "engine", "logs", "row-hashes"):
        (run.path / name).symlink_to(canary)
    unfinished.clear(run)
    assert content(canary) == before and (canary / ".adapter.replaced").is_dir()


def test_links_that_lead_out_of_a_run_are_taken_away(tmp_path: Path, canary: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.path / "adapter").mkdir(parents=True)
    (run.path / "output").mkdir()
    (run.path / "adapter" / "weights").symlink_to(canary / "file")
    (run.path / "adapter" / "own").symlink_to("config.json")
    (run.path / "output" / "theirs").symlink_to(canary)
    (run.path / "phases").symlink_to(canary)
    told = remove_planted(run)
    assert sorted(told) == [
        f"adapter/weights, a link to {canary}/file",
        f"phases, a link to {canary}",
    ]
    assert (run.path / "adapter" / "own").is_symlink()
    assert (run.path / "output" / "theirs").is_symlink()
    assert (canary / "file").read_text() == "untouched"


def test_a_record_is_written_in_place_and_never_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("a longer content")
    inode = target.stat().st_ino
    write_in_place(target, b"short")
    assert (target.read_text(), target.stat().st_ino) == ("short", inode)
    link.symlink_to(target)
    with pytest.raises(OSError):
        write_in_place(link, b"pwned")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PermissionError):
        open_own(tmp_path / "fifo", os.O_RDONLY)
    assert target.read_text() == "short"


def test_what_lies_between_a_writable_mount_and_the_run_is_pinned() -> None:
    run = Path("/work/me/a/b/runs/job/1")
    mounts = [PlannedMount(source="/work/me", target="/work/me", readonly=False)]
    assert {mount.target: mount.readonly for mount in fixed_above(run, mounts)} == {
        "/work/me/a": False,
        "/work/me/a/b": False,
        "/work/me/a/b/runs": True,
        "/work/me/a/b/runs/job": True,
    }
    assert fixed_above(run, [PlannedMount(source="/work/me", target="/work/me")]) == []


# secrets


def test_no_secret_goes_where_none_is_named(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-a-secret")
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-a-secret")
    assert secret_names(box(network="bridge")) == []
    theirs = question(box(image="theirs:1"), ["m"], online=True)
    assert theirs.secrets is None and "HF_TOKEN" not in " ".join(theirs.argv)
    named = question(box(image="theirs:1", secrets=["HF_TOKEN"]), ["m"], online=True)
    assert named.secrets is not None
    assert [p.name for p in (named.secrets / "secrets").iterdir()] == ["HF_TOKEN"]
    named.close()
    from runner.containers.images import default_name

    own = question(box(image=default_name("train")), ["m"], online=True)
    assert own.secrets is not None
    assert [p.name for p in (own.secrets / "secrets").iterdir()] == ["HF_TOKEN"]
    assert own.secrets.stat().st_mode & 0o777 == 0o700
    own.close()
    assert not own.secrets.exists()


def test_a_records_variables_are_not_passed_on(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    record = box(environment=["AWS_SECRET_ACCESS_KEY"])
    assert "AWS_SECRET_ACCESS_KEY" not in question(record, ["m"]).argv
    assert "AWS_SECRET_ACCESS_KEY" in question(record, ["m"], environment=True).argv


MAKE = """
import sys, time
from runner.containers.private import make_private
from runner.containers.secrets import write_secrets
folder = make_private()
write_secrets(folder / "secrets", ["HF_TOKEN"], {"HF_TOKEN": "canary"})
print(folder, flush=True)
time.sleep(600)
"""


def holder(**environment: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds secrets, and their folder."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", MAKE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_secrets_that_a_kill_left_are_swept_and_no_others(tmp_path: Path) -> None:
    killed, left = holder()
    living, held = holder()
    try:
        assert left.parent == private.SHARED_MEMORY and left.stat().st_mode & 0o777 == 0o700
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "secrets" / "HF_TOKEN").read_text() == "canary"
        planted = left.with_name(left.name[:-8] + "planted0")
        planted.symlink_to(tmp_path)
        (tmp_path / "file").write_text("untouched")
        theirs = left.with_name(left.name[:-8] + "theirs00")
        theirs.mkdir()
        if os.geteuid() == 0:
            os.chown(theirs, 12345, 12345)
        removed = private.sweep_private()
        assert left in removed and not left.exists()
        assert (held / "secrets" / "HF_TOKEN").is_file()
        assert planted.is_symlink() and (tmp_path / "file").read_text() == "untouched"
        assert theirs.exists() == (os.geteuid() == 0)
        planted.unlink()
        theirs.rmdir()
    finally:
        living.kill()
        living.wait()
    assert held in private.dead_private()
    private.sweep_private()
    assert not held.exists()


def test_a_name_cannot_be_taken_beforehand(tmp_path: Path) -> None:
    first, second = private.make_private(), private.make_private()
    assert first != second
    for folder in (first, second):
        folder.rmdir()
    assert private.private_example().parent == first.parent


def test_the_runtime_folder_is_taken_where_it_is_this_users_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert private.private_place({"XDG_RUNTIME_DIR": str(tmp_path)}) == private.SHARED_MEMORY
    tmp_path.chmod(0o700)
    assert private.private_place({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path
    (link := tmp_path / "link").symlink_to(tmp_path)
    assert private.private_place({"XDG_RUNTIME_DIR": str(link)}) == private.SHARED_MEMORY
    assert private.private_place({"XDG_RUNTIME_DIR": "relative"}) == private.SHARED_MEMORY
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 12345)
        assert private.private_place({"XDG_RUNTIME_DIR": str(tmp_path)}) == private.SHARED_MEMORY
        os.chown(tmp_path, 0, 0)


def test_a_result_is_written_beside_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").write_text("untouched")
    with staged_beside(home / "merged", apart=True) as place:
        assert list(place.parent.iterdir()) == [] and place.parent.parent == home
        place.mkdir()
        (place / "weights").write_text("w")
    assert content(home) == {"file": "untouched", "merged/weights": "w"}
    with pytest.raises(RunnerError), staged_beside(home / "other", apart=True) as place:
        place.symlink_to(home)
    with pytest.raises(RunnerError), staged_beside(home / "merged", apart=True) as place:
        place.mkdir()
    with staged_beside(home / "third", apart=True):
        pass
    assert content(home) == {"file": "untouched", "merged/weights": "w"}
    with staged_beside(home / "fourth", apart=False) as place:
        assert place == home / "fourth"
