"""One holder at a time, free when he dies: by flock, and by leases where that can't be believed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.common import file_systems, lease_file, locks
from tests.support.command import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from runner.common import file_systems, locks
if sys.argv[2] == "lease":
    file_systems.type_number = lambda _: 0x6969
held = locks.try_lock(Path(sys.argv[1]))
print("held" if held else "busy", flush=True)
sys.stdin.read()
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold(way: str) -> Iterator[Hold]:
    """Starts a process that takes a lock and keeps it until it is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, answer: str = "held") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{answer}\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_has_it_and_the_next_when_he_gives_it_up(way: str, tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    first = locks.try_lock(path)
    assert first is not None
    assert locks.try_lock(path) is None
    assert locks.is_locked(path)
    first.release()
    first.release()  # a second time is nothing
    assert not locks.is_locked(path)
    with locks.locked(path):
        assert locks.is_locked(path)
    assert not locks.is_locked(path)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["x.lock"]
    assert way in ("flock", "lease")


def test_nobody_has_what_is_not_there(way: str, tmp_path: Path) -> None:
    assert not locks.is_locked(tmp_path / "no.lock")
    assert not list(tmp_path.iterdir())


def test_another_process_has_it_until_it_is_killed(way: str, hold: Hold, tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    holder = hold(path)
    assert locks.is_locked(path)
    assert locks.try_lock(path, patience_seconds=0.2) is None
    hold(path, "busy")
    holder.kill()
    holder.wait()
    assert not locks.is_locked(path)
    held = locks.try_lock(path)
    assert held is not None
    assert locks.is_locked(path)
    held.release()


def test_who_waits_says_so_once_and_gets_it(way: str, hold: Hold, tmp_path: Path) -> None:
    path, told = tmp_path / "x.lock", []
    holder = hold(path)

    def say() -> None:
        told.append("waiting")
        threading.Timer(0.3, holder.kill).start()

    with locks.locked(path, waiting=say):
        assert holder.wait() == -signal.SIGKILL
        assert locks.try_lock(path) is None
    assert told == ["waiting"]
    with locks.locked(path, waiting=say):
        pass
    assert told == ["waiting"]


def test_a_lock_of_a_folder_is_kept_when_it_is_renamed(way: str, tmp_path: Path) -> None:
    """By the kernel under the new name too; a lease names the place where it was taken."""
    folder, new = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    held = locks.try_lock_folder(folder)
    assert held is not None
    assert locks.try_lock_folder(folder) is None
    folder.rename(new)
    if way == "flock":
        assert locks.try_lock_folder(new) is None
    held.release()
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and not list(new.iterdir())
    again = locks.try_lock_folder(new)
    assert again is not None
    again.release()


def test_no_link_is_locked(way: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError):
        locks.try_lock_folder(tmp_path / "link")
    (tmp_path / "x.lock.lease").symlink_to(tmp_path / "real")
    if way == "lease":
        with pytest.raises(OSError):
            locks.try_lock(tmp_path / "x.lock")
    assert not list((tmp_path / "real").iterdir())


def _count(arguments: tuple[Path, str, int]) -> int:
    """Add one to a number in a file, again and again, each time within the lock."""
    path, way, times = arguments
    if way == "lease":
        file_systems.type_number = lambda _: 0x6969  # type: ignore[assignment]
        locks._POLL_SECONDS = 0.01
    number = path.with_name("number")
    for _ in range(times):
        with locks.locked(path):
            had = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(had + 1))
    return times


def test_nothing_is_lost_between_processes(way: str, tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        done = sum(pool.map(_count, [(tmp_path / "x.lock", way, 15)] * 4))
    assert int((tmp_path / "number").read_text()) == done == 60


def _take_dead(arguments: tuple[Path, int]) -> bool:
    path, _ = arguments
    file_systems.type_number = lambda _: 0x6969  # type: ignore[assignment]
    held = locks.try_lock(path)
    time.sleep(0.2)  # who has it keeps it until all have asked
    return held is not None


def test_of_many_takers_of_a_dead_ones_lease_one_wins(tmp_path: Path) -> None:
    for number in range(15):
        path = tmp_path / f"{number}.lock"
        folder = locks.lease_folder(path)
        folder.mkdir()
        (folder / lease_file.HOLDER).write_text(json.dumps(dead_record()))
        with multiprocessing.get_context("fork").Pool(6) as pool:
            won = pool.map(_take_dead, [(path, taker) for taker in range(6)], chunksize=1)
        assert sum(won) == 1, won


def dead_record(**changes: object) -> dict[str, object]:
    """What a holder wrote who ran on this machine and is gone."""
    own = json.loads(lease_file._record("0" * 32))
    return {**own, "token": "d" * 32, "start_ticks": 1, **changes}


def test_a_lease_on_a_real_disk_of_two_machines(machines: tuple[Path, Path]) -> None:
    here, there = (place / "x.lock" for place in machines)
    raw = [os.open(path, os.O_RDWR | os.O_CREAT) for path in (here, there)]
    assert [locks.try_flock(descriptor) for descriptor in raw] == [
        True,
        True,
    ]  # why there are leases
    for descriptor in raw:
        os.close(descriptor)
    held = locks.try_lock(here)
    assert held is not None
    assert locks.try_lock(there) is None
    assert locks.is_locked(there)
    held.release()
    assert not locks.is_locked(there)
    taken = locks.try_lock(there)
    assert taken is not None
    assert locks.try_lock(here) is None
    taken.release()
