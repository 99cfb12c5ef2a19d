"""Leases: who counts as alive, who may take over, and what he is told who was taken for dead."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.common import lease_file
from runner.common.lease_file import HOLDER, STALE_SECONDS
from tests.common.test_locks import dead_record

ELSEWHERE = {"host": "other", "boot_id": "of another machine", "pid": os.getpid()}


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_holder(place: Path, age_seconds: float = 0.0, **changes: Any) -> Path:
    """A lease as another process left it, with a heartbeat so long ago."""
    folder = place / "it"
    folder.mkdir(exist_ok=True)
    file = folder / HOLDER
    file.write_text(json.dumps(dead_record(**changes)))
    at = time.time() - age_seconds
    os.utime(file, (at, at))
    return file


@pytest.mark.parametrize(
    ("record", "age_seconds", "taken"),
    [
        pytest.param({"start_ticks": 1}, 0, False, id="of here, its process is gone"),
        pytest.param(ELSEWHERE, 5, True, id="of another machine, it said so 5 s ago"),
        pytest.param(ELSEWHERE, STALE_SECONDS + 5, False, id="of another machine, silent"),
        pytest.param({"token": 5}, 5, True, id="damaged, of this moment"),
        pytest.param({"token": "../x"}, 5, True, id="a token that is no word"),
        pytest.param({"token": 5}, STALE_SECONDS + 5, False, id="damaged, and old"),
    ],
)
def test_who_counts(
    record: dict[str, Any], age_seconds: float, taken: bool, parent: int, tmp_path: Path
) -> None:
    write_holder(tmp_path, age_seconds, **record)
    assert lease_file.is_taken(parent, "it") is taken
    lease = lease_file.try_take(parent, "it")
    assert (lease is None) is taken
    if lease is not None:
        assert lease_file.is_taken(parent, "it")
        assert names_in(tmp_path / "it") == [HOLDER]
        lease.release()
        assert not (tmp_path / "it").exists()


@pytest.mark.parametrize(("age_seconds", "taken"), [(5.0, True), (STALE_SECONDS + 5, False)])
def test_in_another_container_the_kernels_clock_counts(
    age_seconds: float, taken: bool, parent: int, tmp_path: Path
) -> None:
    """Its process can't be looked at; a disk whose clock is wrong by an hour changes nothing."""
    beat = time.clock_gettime(time.CLOCK_BOOTTIME) - age_seconds
    for wrong in (-3600.0, 3600.0):
        write_holder(tmp_path, wrong, pid_namespace="another", beat_boot_seconds=beat)
        assert lease_file.is_taken(parent, "it") is taken


def test_the_age_is_told_by_the_clock_of_the_disk(
    parent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's may be wrong."""
    monkeypatch.setattr(time, "time", lambda: 4e9)
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / HOLDER).write_text(json.dumps(dead_record(**ELSEWHERE)))
    assert lease_file.is_taken(parent, "it")


def test_a_process_that_stands_still_keeps_it(parent: int, tmp_path: Path) -> None:
    """On its own machine only its end counts, however long its heartbeat is missing."""
    record = json.loads(lease_file._record("e" * 32))
    write_holder(tmp_path, 10 * STALE_SECONDS, **record)
    assert lease_file.try_take(parent, "it") is None


def test_a_taker_who_died_on_the_way_is_passed(parent: int, tmp_path: Path) -> None:
    file = write_holder(tmp_path, STALE_SECONDS + 5, **ELSEWHERE)
    taking = file.with_name(f"taking-{'d' * 32}-1")
    taking.write_text(json.dumps(dead_record(token="f" * 32)))
    lease = lease_file.try_take(parent, "it")
    assert lease is not None
    assert names_in(tmp_path / "it") == [HOLDER]
    lease.release()


def test_a_taker_who_lives_is_left_to_it(parent: int, tmp_path: Path) -> None:
    file = write_holder(tmp_path, STALE_SECONDS + 5, **ELSEWHERE)
    taking = file.with_name(f"taking-{'d' * 32}-1")
    taking.write_text(json.dumps(dead_record(**ELSEWHERE)))
    assert lease_file.try_take(parent, "it") is None
    assert taking.is_file()


def test_a_taker_who_comes_late_does_not_take_it_from_the_first(
    parent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw the same dead holder; between the two looks of one, the other has taken it."""
    write_holder(tmp_path, STALE_SECONDS + 5, **ELSEWHERE)
    real, won = lease_file._take_over, []

    def held_up(folder: int, dead: lease_file.Holder, key: str) -> int | None:
        monkeypatch.setattr(lease_file, "_take_over", real)
        won.append(lease_file.try_take(parent, "it"))
        return real(folder, dead, key)

    monkeypatch.setattr(lease_file, "_take_over", held_up)
    assert lease_file.try_take(parent, "it") is None
    assert won[0] is not None
    assert won[0].beat() is None  # it is still his
    assert names_in(tmp_path / "it") == [HOLDER]
    won[0].release()


def test_who_was_taken_for_dead_is_told_and_takes_nothing_away(
    parent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_file, "HEARTBEAT_SECONDS", 0.05)
    told, over = [], threading.Event()
    lease = lease_file.try_take(parent, "it")
    assert lease is not None
    lease.on_lost = lambda holder: (told.append(holder), over.set())[1]
    other = tmp_path / "it" / "other"
    other.write_text(json.dumps(dead_record(**ELSEWHERE)))
    other.rename(tmp_path / "it" / HOLDER)
    assert over.wait(10)
    assert told == [f"pid {os.getpid()} on other"]
    lease.release()
    assert json.loads((tmp_path / "it" / HOLDER).read_text())["token"] == "d" * 32


def test_a_heartbeat_is_written_and_the_file_stays_as_long(
    parent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_file, "HEARTBEAT_SECONDS", 0.05)
    lease = lease_file.try_take(parent, "it")
    assert lease is not None
    file = tmp_path / "it" / HOLDER
    first, size = json.loads(file.read_text()), file.stat().st_size
    end = time.monotonic() + 30
    while json.loads(file.read_text()) == first:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert file.stat().st_size == size
    lease.release()


def test_what_is_no_lease_is_not_believed(parent: int, tmp_path: Path) -> None:
    (tmp_path / "it").write_text("a file")
    assert not lease_file.is_taken(parent, "it")
    with pytest.raises(NotADirectoryError):
        lease_file.try_take(parent, "it")
    (tmp_path / "it").unlink()
    (tmp_path / "it").mkdir()
    os.mkfifo(tmp_path / "it" / HOLDER)
    with pytest.raises(OSError, match="no regular file"):
        lease_file.try_take(parent, "it")
