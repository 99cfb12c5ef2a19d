"""No process is signalled on a folder's word: `stop`, with real processes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.common.process_times import boot_id, start_ticks
from runner.runs.create import create_run
from runner.runs.folder import RunFolder
from runner.runs.orphans import living_processes
from runner.runs.ranks import living_engines
from runner.runs.supervisor_process import find_supervisor, signal_supervisor
from tests.support.command import Answer

Cli = Callable[..., Answer]
OTHER_UID = 12345


@pytest.fixture
def canary() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = create_run(tmp_path / "runs", "demo", "3f2a91c", "train", {"plan.yaml": "a: 1\n"})
    run.lock.touch()
    return run


def names(run: RunFolder, pid: int) -> None:
    """Have the folder say that this process supervises it, and trains in it."""
    record = {"pid": pid, "start_ticks": start_ticks(pid), "boot_id": boot_id()}
    run.supervisor.write_text(json.dumps(record))
    (run.engine / "rank-0.json").write_text(json.dumps({**record, "phase": "training"}))


def a_supervisor(run: RunFolder) -> subprocess.Popen[bytes]:
    """A process with a supervisor's command line, that ends at the first SIGTERM."""
    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(9)); print(); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(600)", "runner.supervisor", str(run.path)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def unharmed(process: subprocess.Popen[bytes]) -> bool:
    time.sleep(0.3)
    return process.poll() is None


@pytest.mark.parametrize("locked", [False, True])
def test_stop_leaves_an_unrelated_process_alone(
    cli: Cli, folder: RunFolder, canary: subprocess.Popen[bytes], locked: bool
) -> None:
    names(folder, canary.pid)
    with folder.lock.open("r") as held:
        if locked:
            fcntl.flock(held, fcntl.LOCK_EX)
        answer = cli("stop", str(folder.path))
    assert answer.code == 3 and unharmed(canary), answer.err
    wanted = "which is another program" if locked else "nobody holds its lock"
    assert wanted in answer.err and "Traceback" not in answer.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_another_user_s_folder_names_nobody_of_mine(
    cli: Cli, folder: RunFolder, canary: subprocess.Popen[bytes]
) -> None:
    """The lock is held by its owner, who wrote the command line of a supervisor too."""
    mine = a_supervisor(folder)
    try:
        names(folder, mine.pid)
        os.chown(folder.path, OTHER_UID, OTHER_UID)
        with folder.lock.open("r") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            found = find_supervisor(folder)
            assert found.pid is None and "another user's" in found.why_not
            answer = cli("stop", str(folder.path))
            assert answer.code == 3 and unharmed(mine), answer.err
        assert living_engines(folder) == [] and living_processes(folder) == []
    finally:
        mine.kill()
        mine.wait()


def test_the_supervisor_itself_is_reached(folder: RunFolder) -> None:
    theirs = a_supervisor(folder)
    names(folder, theirs.pid)
    with folder.lock.open("r") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert signal_supervisor(folder, signal.SIGTERM).pid == theirs.pid
    assert theirs.wait(600) == 9


def test_one_of_another_run_is_not(tmp_path: Path, folder: RunFolder) -> None:
    other = create_run(tmp_path / "runs", "other", "3f2a91c", "train", {"plan.yaml": "a: 1\n"})
    theirs = a_supervisor(other)
    try:
        names(folder, theirs.pid)
        with folder.lock.open("r") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            found = signal_supervisor(folder, signal.SIGTERM)
        assert found.pid is None and "another program" in found.why_not and unharmed(theirs)
    finally:
        theirs.kill()
        theirs.wait()


def test_a_pid_that_was_taken_by_another_is_not(
    folder: RunFolder, canary: subprocess.Popen[bytes]
) -> None:
    names(folder, canary.pid)
    record = json.loads(folder.supervisor.read_text())
    for other in ({"start_ticks": 1}, {"boot_id": "another"}, {"pid": 10**400}, {"pid": -1}):
        folder.supervisor.write_text(json.dumps({**record, **other}))
        with folder.lock.open("r") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert signal_supervisor(folder, signal.SIGTERM).pid is None
    assert unharmed(canary)


def test_a_pipe_for_a_lock_is_not_waited_for(folder: RunFolder) -> None:
    folder.lock.unlink()
    os.mkfifo(folder.lock)
    assert folder.is_supervised() is False
