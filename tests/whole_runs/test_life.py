"""A run as other processes see it: detached, attached to, its terminal dead, its end told.

What trains is the stub (tests/support/stub_trainer); all else is real.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runner.runs import checkpoints
from tests.support.workplace import Workplace, lines, termination, wait_gone

LONG = ["--set", "training.max_steps=100000"]


@pytest.fixture
def held(stub_place: Workplace, tmp_path: Path) -> tuple[Workplace, Path]:
    """A place whose runs do not end before a file is there, and that file."""
    release = tmp_path / "release"
    return replace(stub_place, stub={"STUB_RELEASE": str(release)}), release


def state_of(place: Workplace) -> str:
    [run] = place.call("ps", "--all", "--json").json["runs"]
    return str(run["state"])


def in_a_terminal(place: Workplace, *arguments: str) -> tuple[int, int]:
    """`runner` as the foreground of a real terminal: its pid and our end of the terminal."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(place.folder)
        os.execve(  # noqa: S606 - no shell is wanted
            place.python, [place.python, "-m", "runner", *arguments], place.environment()
        )
    return pid, terminal


def read_until(terminal: int, text: str, seconds: float = 1800) -> str:
    seen, end = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < end, seen
        seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


@pytest.mark.e2e
def test_a_detached_run_is_listed_attached_to_stopped_and_waited_for(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    place, small_job = stub_place, stub_job
    started = place.call("train", *small_job, *LONG, "--detach", "--json").json
    run, name = Path(started["folder"]), started["run"]
    assert started["state"] == "running" and run == place.last
    follower = place.start("logs", "-f", "--raw", name)
    waiter = place.start("wait", name)
    place.wait_for_step(2)
    [seen] = place.call("ps", "--json").json["runs"]
    assert (seen["run"], seen["state"], seen["max_steps"]) == (name, "running", 100000)
    assert seen["step"] >= 1 and seen["loss"] > 0 and seen["device"] == "cpu"
    assert 0 < seen["memory_bytes"] < seen["budget_bytes"] == 6 << 30
    assert 0 < seen["seconds"] < 3600
    # Ctrl-C in a terminal that is attached leaves the run alone, and says how to stop it
    pid, terminal = in_a_terminal(place, "attach", name)
    read_until(terminal, "step ")
    os.write(terminal, b"\x03")
    assert f"runner stop {name}" in read_until(terminal, "ends it")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    for command in (["rm", name, "--yes"], ["rm", "@last", "--yes"]):
        refused = place.call(*command)
        assert (refused.code, "it is left alone" in refused.err) == (3, True)
    assert "nothing here falls" in place.call("prune", "--older-than", "0m", "--yes").out
    assert state_of(place) == "running" and waiter.poll() is None and follower.poll() is None
    assert place.call("stop", name).code == 0
    out, _ = waiter.communicate(timeout=1800)
    assert (waiter.returncode, out.startswith("stopped")) == (143, True)
    log, _ = follower.communicate(timeout=1800)
    assert follower.returncode == 0
    assert log == (run / "logs" / "train.log").read_text()  # to the last word
    assert place.call("attach", name).code == 143
    assert state_of(place) == "stopped"
    assert place.call("rm", name, "--yes").code == 0
    assert not run.exists()


@pytest.mark.e2e
@pytest.mark.parametrize("detach", [True, False])
def test_the_death_of_the_terminal_does_not_end_the_run(
    detach: bool, held: tuple[Workplace, Path], stub_job: list[str]
) -> None:
    """No setsid, no nohup: a login shell in a terminal, which is hung up and killed."""
    place, release = held
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(place.folder)
        os.execve("/bin/bash", ["bash", "--norc", "-i"], place.environment())  # noqa: S606
    words = [place.python, "-m", "runner", "train", *stub_job, *(["--detach"] if detach else [])]
    os.write(terminal, f"{shlex.join(words)}\n".encode())
    run = place.wait_for_step(1)
    if detach:
        read_until(terminal, f"\n{run.parent.name}/{run.name}")
    os.kill(pid, signal.SIGHUP)  # as a terminal that closes, to the session's leader
    os.close(terminal)  # and the kernel hangs up on all that is left in the session
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert state_of(place) == "running"
    release.touch()
    assert place.call("wait", "@last").code == 0
    assert termination(run)["reason"] == "completed"
    wait_gone(run)


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
def test_killing_tmux_s_server_does_not_end_the_run(
    held: tuple[Workplace, Path], stub_job: list[str]
) -> None:
    place, release = held
    tmux = ["tmux", "-L", f"runner-test-{os.getpid()}", "-f", "/dev/null"]
    words = [place.python, "-m", "runner", "train", *stub_job]
    subprocess.run(
        [*tmux, "new-session", "-d", "-c", str(place.folder), shlex.join(words)],
        env={**place.environment(), "TERM": "xterm"},
        check=True,
    )
    try:
        run = place.wait_for_step(1)
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    assert state_of(place) == "running"
    pid, terminal = in_a_terminal(place, "attach")
    read_until(terminal, "step ")
    os.kill(pid, signal.SIGHUP)  # nor does the death of who is attached
    os.close(terminal)
    os.waitpid(pid, 0)
    release.touch()
    assert place.call("wait", "@last").code == 0
    assert termination(run)["reason"] == "completed"


@pytest.mark.e2e
def test_who_is_told_of_the_end_gets_the_outcome_and_changes_nothing(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    place, small_job = stub_place, stub_job
    hook = "cat > told.json; test -f termination.json && flock -n .lock touch free; exit 9"
    done = place.call(
        "train", *small_job, "--set", "training.max_steps=2", "--set", f"on_end={json.dumps(hook)}"
    )
    run, end = place.last, termination(place.last)
    assert (done.code, end["reason"], end["exit_code"]) == (0, "completed", 0)
    told = json.loads((run / "told.json").read_text())
    assert told["run"] == f"{run.parent.name}/{run.name}" and told["folder"] == str(run)
    assert (told["job"], told["variant"]) == ("demo-identity", "train")
    assert {key: told[key] for key in end} == end
    assert (run / "free").exists()  # lock and cards were given back before
    warnings = [e["text"] for e in lines(run / "events.jsonl") if e["kind"] == "warning"]
    assert warnings == ["on_end ended with exit code 9"]
    assert end["warnings"] == []


@pytest.mark.e2e
def test_a_detached_start_that_is_refused_says_so(
    stub_place: Workplace, stub_job: list[str]
) -> None:
    """Before the plan is written: a training process of an earlier start lives in the folder."""
    place, small_job = stub_place, stub_job
    assert place.call("train", *small_job).code == 0
    run = place.last
    (run / "termination.json").unlink()
    saved = run / "checkpoints" / "checkpoint-6"
    saved.mkdir(exist_ok=True)
    checkpoints.seal(saved)
    own = json.loads((run / "engine" / "rank-0.json").read_text())
    stat = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()
    own |= {"pid": os.getpid(), "start_ticks": int(stat[19])}
    (run / "engine" / "rank-0.json").write_text(json.dumps(own))
    refused = place.call("train", *small_job, "--resume", "--detach")
    assert (refused.code, refused.out) == (3, "")
    assert f"pids [{os.getpid()}] of {run.parent.name}/{run.name} still live" in refused.err
