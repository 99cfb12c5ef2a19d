"""What goes on of a script after its supervisor was killed: seen, named, and never taken away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.common.process_times import boot_id
from runner.runs.folder import RunFolder
from runner.runs.orphans import living_processes
from tests.support.command import Answer
from tests.support.workplace import Workplace

Cli = Callable[..., Answer]
SCRIPT = """
setsid sleep 301 &
trap '' TERM
exec env -i sleep 302
"""
"""Two that outlive the watch's SIGTERM: one has left the session, one has lost its environment."""


def wait_until(holds: Callable[[], bool], seconds: float = 1800) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def sleepers(run: RunFolder) -> list[int]:
    """Those two of the living; the launch script's watch comes and goes."""
    found = []
    for pid in living_processes(run):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if command[0] == b"sleep" and command[1] in (b"301", b"302"):
            found.append(pid)
    return found


@pytest.fixture
def outlived(tmp_path: Path, cli: Cli) -> Iterator[tuple[RunFolder, list[int]]]:
    """A run whose supervisor was killed, and the pids of the two."""
    (tmp_path / "train.sh").write_text(SCRIPT)
    (tmp_path / "job.yaml").write_text("engine: script\nscript: train.sh\n")
    started = Workplace(tmp_path).call("train", "job.yaml", "--detach", "--json").json
    run = RunFolder(Path(started["folder"]))
    pids: list[int] = []
    try:
        wait_until(lambda: len(sleepers(run)) == 2)
        pids = sleepers(run)
        os.kill(started["supervisor_pid"], signal.SIGKILL)
        wait_until(lambda: not run.is_supervised())
        yield run, pids
    finally:
        for pid in sleepers(run):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.e2e
def test_what_outlived_the_supervisor_is_named_and_the_folder_stays(
    outlived: tuple[RunFolder, list[int]], cli: Cli
) -> None:
    run, pids = outlived
    told = json.loads(run.sources.read_text())
    assert (told["folder"], told["command"][1]) == (str(Path.cwd()), "train")
    [seen] = json.loads(cli("ps", "--json").out)["runs"]
    assert seen["state"] == "lost" and set(pids) <= set(seen["living_processes"])
    listed = cli("ps").out
    assert "lost, alive" in listed and "STILL LIVE without a guard" in listed
    assert "STILL LIVE without a guard" in cli("report", run.name).out
    refused = cli("rm", run.name, "--yes")
    assert (refused.code, f"of {run.name} still live" in refused.err) == (3, True)
    assert all(str(pid) in refused.err for pid in pids)
    stopped = cli("stop", run.name)
    assert (stopped.code, "still live" in stopped.err) == (3, True)
    for rule in (["--failed"], ["--older-than", "0m"]):
        assert "nothing here falls under" in cli("prune", *rule, "--yes").out
    # nor does anybody go on with it beside them
    again = subprocess.run(
        [sys.executable, "-m", "runner.supervisor", str(run.path), "--resume"],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    # by the lock, which the watch has once the supervisor is gone, or by what lives
    assert again.returncode == 3, again.stderr
    assert "already has a supervisor" in again.stderr or "still live" in again.stderr
    # after a reboot nobody is looked for
    record = json.loads(run.supervisor.read_text())
    assert record["boot_id"] == boot_id()
    run.supervisor.write_text(json.dumps({**record, "boot_id": "another"}))
    assert living_processes(run) == []
    run.supervisor.write_text(json.dumps(record))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not living_processes(run))  # the watch has nobody to watch any more
    assert "STILL LIVE" not in cli("ps").out
    assert cli("rm", run.name, "--yes").code == 0
