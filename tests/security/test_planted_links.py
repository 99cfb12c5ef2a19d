"""What a run's own code puts in its folder in place of a record leads no write out of it.

Each run here is a real one, whose script replaces what the supervisor writes while it is written,
as code in a container can, for which the folder is mounted to be written. Outside of the folder
lies a canary, which nobody may change; the verdict is there and right all the same.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.common import durable
from runner.common.errors import RunnerError
from runner.common.own_python import module_argv, safe_environment
from runner.common.shared_folder import SharedFolder
from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.script.plan import ScriptPlan
from runner.engines.script.resolve import gather_script, make_script_plan
from runner.runs import recover as unfinished
from runner.runs.create import create_run
from runner.runs.delete import locked_for_removal, remove_checkpoints, sweep
from runner.runs.folder import RunFolder
from runner.runs.outcome import Outcome, Reason
from runner.supervisor import recovery
from runner.supervisor.event_log import EventLog
from runner.supervisor.execute.local import LocalExecutor
from runner.supervisor.termination_file import TerminationFile
from tests.support.command import Answer

RECORDS = (
    "events.jsonl",
    "memory.jsonl",
    "termination.json",
    "manifest.json",
    "project.diff",
    "supervisor.json",
    "queue.json",
    "advice.json",
    ".lock",
    ".verdict",
    ".reserve",
    "logs/train.log",
    "logs/supervisor.log",
)
"""All that the host writes in a run's folder, of every kind of run."""
FOLDERS = ("logs", "engine", "checkpoints", "attempts", "earlier", "phases", "row-hashes")
READS_PIPES = hasattr(durable, "open_record")
KINDS = (
    "link",
    "dangling",
    "folder",
    "second name",
    "linked folders",
    pytest.param("pipe", marks=pytest.mark.skipif(not READS_PIPES, reason="reading waits for one")),
)
SCRIPT = r"""
kind=$1 outside=$2 code=$3
shift 3
cd "$RUNNER_OUTPUT/.." || exit 9
for one in "$@"; do
  rm -rf "$one"
  case $kind in
    link) ln -s "$outside/canary" "$one" ;;
    dangling) ln -s "$outside/not-there" "$one" ;;
    folder) mkdir "$one"; echo inside > "$one/file" ;;
    pipe) mkfifo "$one" ;;
    "second name") ln "$outside/canary" "$one" ;;
    "linked folders") ln -s "$outside" "$one" ;;
  esac
done
exit "$code"
"""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder with what a user has, as a home folder is; the test ends with it as it was."""
    folder = tmp_path / "outside"
    (folder / ".removed-checkpoint-1").mkdir(parents=True)
    (folder / "checkpoint-1").mkdir()
    for name in (
        "canary",
        ".bashrc",
        ".config.tmp",
        ".reserve",
        "train.log",
        "supervisor.log",
        "plan.yaml",
        ".removed-checkpoint-1/file",
        "checkpoint-1/file",
    ):
        (folder / name).write_text(f"content of {name}\n")
    before = content(folder)
    yield folder
    assert content(folder) == before


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def lay(tmp_path: Path, *arguments: str, script: str = SCRIPT) -> RunFolder:
    """A run of a script that has not started."""
    (tmp_path / "train.sh").write_text(script)
    given = json.dumps(list(arguments))
    (tmp_path / "job.yaml").write_text(
        f"engine: script\nscript: train.sh\narguments: {given}\n"
        'environment: {RUNNER_OUTPUT: "{output}"}\n'
    )
    loaded = load_job(str(tmp_path / "job.yaml"))
    plan = make_script_plan(loaded, gather_script(loaded), "train", None)
    assert isinstance(plan, ScriptPlan)
    return create_run(tmp_path / "runs", plan.job, plan.short_hash, plan.variant, render(plan))


def supervise(folder: RunFolder, *words: str) -> int:
    """As `runner train` starts it."""
    with folder.open_log(folder.supervisor_log) as log:
        return subprocess.run(
            module_argv("runner.supervisor", str(folder.path), *words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=safe_environment(),
            timeout=600,
        ).returncode


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_replaces_its_records_is_judged_and_writes_nowhere_else(
    kind: str, tmp_path: Path, outside: Path, cli: Callable[..., Answer]
) -> None:
    names, code = FOLDERS if kind == "linked folders" else RECORDS, 7 if kind == "folder" else 0
    folder = lay(tmp_path, kind, str(outside), str(code), *names)
    reason = "failed" if code else "completed"
    for words in ([], ["--resume"]):  # the second finds what the first has left
        assert supervise(folder, *words) == code
        assert not folder.termination.is_symlink()
        end = json.loads(folder.termination.read_text())
        assert (end["reason"], end["exit_code"]) == (reason, code)
        if kind == "folder":
            events = folder.events.read_text()  # the last of them: of what gave way to the verdict
            assert "termination.json was a folder" in events.splitlines()[-1]
        told = cli("report", str(folder.path))
        assert (told.code, told.err) == (0, ""), told
        assert reason in told.out


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_moved_aside_is_told_of_and_kept(
    kind: str, tmp_path: Path, outside: Path, cli: Callable[..., Answer]
) -> None:
    folder = lay(tmp_path, script="true\n")
    folder.events.touch()
    name = "logs" if kind == "linked folders" else "events.jsonl"
    script = tmp_path / "plant.sh"
    script.write_text(SCRIPT)
    output = {**os.environ, "RUNNER_OUTPUT": str(folder.path / "output")}
    folder.output.mkdir()
    subprocess.run(["bash", script, kind, outside, "0", name], env=output, check=True)
    record = EventLog(folder)
    with folder.open_log(folder.train_log) as log:
        log.write(b"a line\n")
    record.event("notice", "written")
    aside = folder.path / f"{name}.planted-1"
    assert aside.is_symlink() or aside.exists()
    if name == "events.jsonl":
        first, second = durable.read_jsonl(folder.events)
        assert first["kind"] == "warning" and "events.jsonl.planted-1" in first["text"]
        assert record.warnings == [first["text"]] and second["text"] == "written"


def test_set_aside_and_recovery_go_through_no_link(tmp_path: Path, outside: Path) -> None:
    folder = lay(tmp_path, script="true\n")
    told: list[str] = []
    folder = RunFolder(folder.path, told=told.append)
    for place in (folder.earlier, folder.attempts):
        place.symlink_to(outside)
    folder.termination.write_text("{}")
    folder.supervisor.symlink_to(outside / "canary")
    assert folder.set_aside(folder.verdicts()) == folder.earlier / "1"
    assert (folder.earlier / "1" / "termination.json").read_text() == "{}"
    assert not folder.supervisor.is_symlink()
    loaded = load_job(str(tmp_path / "job.yaml"))
    plan = make_script_plan(loaded, gather_script(loaded), "train", None)
    outcome = Outcome(Reason.CUDA_OOM, 1, "no memory")
    launch = folder.launch_script
    launch.unlink()
    launch.symlink_to(outside / "canary")  # nor is what it points to copied
    assert recovery.put_in_place(folder, plan, plan, outcome) == 1  # type: ignore[arg-type]
    assert (folder.attempt(1) / "launch.sh").read_text() == render(plan)["launch.sh"]
    assert recovery.put_in_place(folder, plan, plan, outcome) == 2  # type: ignore[arg-type]
    assert len(told) == 2 and all("a link" in text for text in told), told


def test_what_a_kill_left_is_looked_for_behind_no_link(tmp_path: Path, outside: Path) -> None:
    folder = lay(tmp_path, script="true\n")
    for name in FOLDERS:
        place = folder.path / name
        if place.is_dir():
            place.rmdir()
        place.symlink_to(outside)
    (folder.path / ".staging-link.tmp").symlink_to(outside)
    assert unfinished.clear(folder) == [".staging-link.tmp"]


def test_no_evaluation_is_made_where_a_link_leads(tmp_path: Path, outside: Path) -> None:
    from runner.engines.sft.inside.evaluate.request import EvaluationFolder
    from runner.launch.evaluate import _make_folder

    folder = lay(tmp_path, script="true\n")
    folder.evaluations.symlink_to(outside)
    made = EvaluationFolder(_make_folder(None, folder, tmp_path, None))  # type: ignore[arg-type]
    made.predictions.symlink_to(outside / "canary")
    made.open_lines(made.predictions).write({"row": 1})
    assert made.path.parent == folder.evaluations and not folder.evaluations.is_symlink()


def test_pruning_removes_nothing_through_a_link(tmp_path: Path, outside: Path) -> None:
    folder = lay(tmp_path, script="true\n")
    folder.checkpoints.rmdir()
    folder.checkpoints.symlink_to(outside)
    folder.lock.unlink(missing_ok=True)
    folder.lock.symlink_to(outside / "canary")
    with locked_for_removal(folder), pytest.raises(RunnerError, match="is a link"):
        remove_checkpoints(folder, ("checkpoint-1",))
    sweep(tmp_path / "runs")
    folder.checkpoints.unlink()
    (folder.checkpoints / "checkpoint-1").mkdir(parents=True)
    (folder.checkpoints / ".removed-checkpoint-1").symlink_to(outside)
    with locked_for_removal(folder):
        remove_checkpoints(folder, ("checkpoint-1",))
    assert list(folder.checkpoints.iterdir()) == []


def test_temporary_files_of_a_run_are_not_made_where_a_link_points(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = lay(tmp_path, script="true\n")
    from runner.runs import tmpdir as temporary

    temporary.temporary_of(folder.path).symlink_to(outside)
    executor = LocalExecutor(folder, resume=False)
    executor.start()
    while not executor.ended():
        os.sched_yield()
    assert executor.notes and "is not this user's folder" in executor.notes[0]
    assert executor.clear()


def test_the_place_of_the_verdict_is_not_another_s(
    tmp_path: Path, outside: Path, full_disk: Callable[..., Path]
) -> None:
    disk = full_disk(1 << 20)
    folder = RunFolder(disk)
    outcome = Outcome(Reason.COMPLETED, 0, "done")
    with TerminationFile(folder) as last_word:
        (disk / ".verdict").unlink()
        (disk / ".verdict").symlink_to(outside / "canary")
        with (disk / "fill").open("wb", buffering=0) as fill, pytest.raises(OSError):
            while True:
                fill.write(b"x" * 4096)
        last_word.say(outcome)
    assert json.loads(folder.termination.read_text())["reason"] == "completed"


def test_a_folder_without_rights_gets_its_verdict(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    os.chown(folder.path, 65534, 65534)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent != Path("/") and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with TerminationFile(folder) as last_word:
                folder.path.chmod(0)
                last_word.say(Outcome(Reason.COMPLETED, 0, "done"))
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert json.loads(folder.termination.read_text())["reason"] == "completed"


def test_no_run_is_made_where_another_user_s_link_leads(tmp_path: Path, outside: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make another user's link")
    root = tmp_path / "shared"
    root.mkdir()
    (root / "job").symlink_to(outside)
    create_run(root, "own", "0" * 7, "train", {})
    os.lchown(root / "job", 65534, 65534)
    with pytest.raises(RunnerError, match="is a link of another user"):
        create_run(root, "job", "0" * 7, "train", {})
    with pytest.raises(OSError, match="is a link of another user"):
        SharedFolder(root / "job").write_file(root / "job" / "x", "x")


def test_a_user_s_own_link_to_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    folder = SharedFolder(tmp_path / "run")
    folder.write_json(folder.path / "inner" / "x.json", {"a": 1})
    assert durable.read_json(tmp_path / "disk" / "inner" / "x.json") == {"a": 1}
    with pytest.raises(ValueError):
        folder.write_file(folder.path / ".." / "x", "")
    with pytest.raises(ValueError):
        folder.write_file(tmp_path / "x", "")
