"""The disk of a run is full: it is looked at, followed and stopped all the same, with a verdict."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.runs.folder import RunFolder
from runner.runs.orphans import living_processes
from tests.support.command import Answer
from tests.support.workplace import Workplace

Cli = Callable[..., Answer]
SCRIPT = """
echo '{"step": 1, "loss": 2.5}' >> ../metrics.jsonl
echo words
dd if=/dev/zero of=fill bs=4k status=none || true
cat /dev/zero >> fill || true
touch "$1"
sleep 300
"""


@pytest.mark.e2e
@pytest.mark.parametrize("by", ["stop", "stop while others fill it", "kill -9"])
def test_a_run_on_a_full_disk_is_seen_stopped_and_judged(
    by: str, full_disk: Callable[[int], Path], cli: Cli, tmp_path: Path
) -> None:
    disk = full_disk(4 << 20)
    full = tmp_path / "full"
    (tmp_path / "train.sh").write_text(SCRIPT)
    (tmp_path / "job.yaml").write_text(f"engine: script\nscript: train.sh\narguments: ['{full}']\n")
    place, runs = Workplace(tmp_path), ["--runs", str(disk / "runs")]
    started = place.call("train", "job.yaml", "--detach", "--json", *runs).json
    run = RunFolder(Path(started["folder"]))
    try:
        wait_until(full.exists)
        look_at_it(by, run, started["supervisor_pid"], disk, place, runs, cli)
    finally:
        if run.is_supervised():
            os.kill(started["supervisor_pid"], signal.SIGTERM)
        wait_until(lambda: not living_processes(run) and not run.is_supervised())


def wait_until(holds: Callable[[], bool], seconds: float = 1800) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextlib.contextmanager
def filling(path: Path, *, wanted: bool) -> Iterator[None]:
    """Inside, whatever becomes free on the disk is taken at once."""
    over = threading.Event()

    def fill() -> None:
        with path.open("ab", buffering=0) as stream:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    stream.write(b"x" * 4096)

    thread = threading.Thread(target=fill)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if wanted:
            thread.join()


def look_at_it(
    by: str,
    run: RunFolder,
    supervisor: int,
    disk: Path,
    place: Workplace,
    runs: list[str],
    cli: Cli,
) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (disk / "one more").write_bytes(b"x" * 8192)
    [seen] = json.loads(cli("ps", "--json", *runs).out)["runs"]
    assert (seen["state"], seen["step"], seen["loss"]) == ("running", 1, 2.5)
    assert "words" in cli("logs", run.name, *runs).out
    assert "no outcome yet" in cli("report", run.name, *runs).out
    attached = place.start("attach", run.name, *runs)
    try:
        assert "attached" in str(attached.stderr and attached.stderr.readline())
    finally:
        attached.send_signal(signal.SIGINT)
        assert attached.wait(600) == 0
    if by != "kill -9":
        with filling(disk / "others", wanted="others" in by):
            assert cli("stop", run.name, *runs).code == 0
        assert json.loads(run.termination.read_text())["reason"] == "stopped"
        assert cli("wait", run.name, *runs).code == 143
    else:
        os.kill(supervisor, signal.SIGKILL)
        assert cli("wait", run.name, *runs).code == 1
        assert "lost" in cli("ps", *runs).out
    assert "words" in cli("logs", "-f", run.name, *runs).out
    assert cli("report", run.name, *runs).code == 0
