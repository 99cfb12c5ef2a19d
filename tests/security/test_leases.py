"""What another user puts into the folder of leases ends no run of yours and blocks no free card.

Two real users where two are needed: who writes the leases here is root, the other one is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.common.packaged import templates_folder
from runner.common.process_times import boot_id, pid_namespace, start_ticks
from runner.common.units import GIB
from runner.machine.leases import observe as look_module
from runner.machine.leases import run_files
from runner.machine.leases import store as book_module
from runner.machine.leases import turn as turn_module
from runner.machine.leases.models import Lease
from runner.machine.leases.schedule import Granted, Queued, decide
from runner.machine.leases.store import LeaseStore
from runner.machine.leases.turn import GpuRequest, look
from runner.runs.folder import RunFolder
from runner.supervisor import gpu_lease as cards_module
from runner.supervisor.event_log import EventLog
from runner.supervisor.gpu_lease import GpuLease
from tests.machine.leases.test_leases import Still, card, claim, contend, taken, turn
from tests.security.other_user import NAME, UID, common_folder, other_user
from tests.support.soaking import examples
from tests.support.workplace import lines

BOOTTIME = time.CLOCK_BOOTTIME
HELD: list[int] = []
"""Descriptors that a process of the other user keeps open."""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of leases that every user can write into.

    Others' run folders may take long to answer: on a busy machine any takes a quarter of a second.
    """
    monkeypatch.setattr(run_files, "_slow", {})
    monkeypatch.setattr(run_files, "_FOLDER_SECONDS", 600.0)
    monkeypatch.setattr(run_files, "_SLOW_SECONDS", 600.0)
    with common_folder() as folder:
        made = folder / "leases"
        made.mkdir()
        made.chmod(0o1777)
        yield made


def is_free(place: Path) -> bool:
    """Whether the one card can be taken; it is given back."""
    asking = turn(place)
    answer = asking.ask(wait=False)
    asking.drop()
    return isinstance(answer, Granted)


def record(**more: Any) -> dict[str, Any]:
    """What a supervisor of runner writes, of the process that calls this."""
    told = {
        "schema_version": 1,
        "number": time.clock_gettime_ns(BOOTTIME),
        "run": "job/of-mallory",
        "folder": "/tmp/nowhere",
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "boot_id": boot_id(),
        "pid_namespace": pid_namespace(),
        "count": 1,
        "budget_bytes": GIB,
        "share": False,
        "allowed": None,
        "cards": ["GPU-0"],
        "since_unix_seconds": 1.0,
    }
    return {**told, **more}


def put(
    folder: Path, content: str | bytes, *, name: str = "00000001-1-0000000a.json", lock: bool = True
) -> Path:
    """A file in the folder of leases, its lock kept by this process for good."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o644)
    if lock:
        HELD.append(os.open(path, os.O_RDWR))
        fcntl.flock(HELD[-1], fcntl.LOCK_EX)
    return path


def instead(field: str, value: str) -> Callable[[], str]:
    """The text of a claim with one field's value as given, as JSON."""
    return lambda: json.dumps(record(**{field: "HERE"})).replace('"HERE"', value)


HOSTILE: dict[str, Callable[[], str | bytes]] = {
    "nested": lambda: b"[" * 16_000,
    "nested inside": instead("run", "[" * 7000 + "]" * 7000),
    "a number of 401 digits": instead("since_unix_seconds", "1" + "0" * 400),
    "a count of 301 digits": instead("count", "1" + "0" * 300),
    "a number that no file name can hold": instead("number", "1" + "0" * 300),
    "the number of a week from now": lambda: json.dumps(
        record(number=time.clock_gettime_ns(BOOTTIME) + 7 * 86400 * 10**9)
    ),
    "number 0": instead("number", "0"),
    "number true": instead("number", "true"),
    "a surrogate in the folder": instead("folder", '"/\\ud800"'),
    "a surrogate among the cards": instead("cards", '["GPU-0", "\\ud800"]'),
    "a surrogate as what it may take": instead("allowed", '["\\udfff"]'),
    "an escape as a card": instead("cards", '["GPU-0", "\\u001b]52;c;eA==\\u0007"]'),
    "a folder beside where one stands": instead("folder", '"runs"'),
    "a NUL in the folder": instead("folder", '"/a\\u0000"'),
    "a folder of 5,000 letters": instead("folder", '"/' + "a" * 5000 + '"'),
    "not a number": instead("since_unix_seconds", "NaN"),
    "endless": instead("since_unix_seconds", "1e999"),
    "a negative time": instead("since_unix_seconds", "-1"),
    "no budget that fits": instead("budget_bytes", str(2**63)),
    "a budget that is a float": instead("budget_bytes", "1e300"),
    "300 cards": instead("cards", json.dumps([f"GPU-{n}" for n in range(300)])),
    "one card twice": instead("cards", '["GPU-0", "GPU-0"]'),
    "null among the cards": instead("cards", '["GPU-0", null]'),
    "sharing by a text": instead("share", '"false"'),
    "pid 0": instead("pid", "0"),
    "pid -1": instead("pid", "-1"),
    "the pid of another": instead("pid", "1"),
    "a pid beyond all": instead("pid", str(2**40)),
    "another boot": instead("boot_id", '"00000000-0000-0000-0000-000000000000"'),
    "a key twice": lambda: json.dumps(record()).replace("{", '{"cards": ["GPU-0"], ', 1),
    "UTF-16": lambda: json.dumps(record()).encode("utf-16"),
    "a list": lambda: "[" + json.dumps(record()) + "]",
    "nothing": lambda: "",
    "100 KB": lambda: json.dumps(record(more="x" * 100_000)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_out_of_bounds_is_no_lease_though_its_living_writer_holds_the_lock(
    place: Path, kind: str
) -> None:
    waiting, first = turn(place, "waiting"), turn(place, "first")
    assert isinstance(first.ask(wait=False), Granted)
    assert isinstance(waiting.ask(wait=True), Queued)
    with other_user(lambda: put(place, HOSTILE[kind]())):
        assert [each.run for each in LeaseStore(place).claims()] == ["first", "waiting"]
        said = waiting.ask(wait=True)
        assert isinstance(said, Queued)
        said.line().encode()
        first.drop()
        assert isinstance(waiting.ask(wait=True), Granted)


def test_within_the_bounds_it_counts_while_its_writer_lives(place: Path) -> None:
    """So that the test above shows what it says."""
    with other_user(lambda: put(place, json.dumps(record()))) as other:
        answer = turn(place).ask(wait=False)
        assert isinstance(answer, Queued)
        assert f"held by job/of-mallory ({NAME}, pid {other.pid}" in answer.line()
    assert isinstance(turn(place).ask(wait=False), Granted)


def test_a_lease_of_an_earlier_runner_counts(place: Path) -> None:
    def old() -> dict[str, Any]:
        told = {**record(number=1), "user": "x", "orphans": []}
        return {k: v for k, v in told.items() if k not in ("boot_id", "pid_namespace")}

    with other_user(lambda: put(place, json.dumps(old()))):
        assert isinstance(turn(place).ask(wait=False), Queued)


def test_who_writes_the_highest_number_breaks_no_later_arrival(place: Path) -> None:
    def highest() -> str:
        return json.dumps(record(number=time.clock_gettime_ns(BOOTTIME) + 10**9, cards=["GPU-1"]))

    with other_user(lambda: put(place, highest())):
        assert len(LeaseStore(place).claims()) == 1
        first, second = turn(place, "first"), turn(place, "second")
        assert isinstance(first.ask(wait=True), Granted)
        assert isinstance(second.ask(wait=True), Queued)
        first.drop()
        assert isinstance(second.ask(wait=True), Granted)


def test_a_claim_with_my_number_is_not_mine() -> None:
    mine = claim(5, uid=1)
    copied = replace(mine, uid=2, run="copied", cards=("GPU-0",))
    answer = decide(mine, [copied], [card()])
    assert isinstance(answer, Queued) and "held by copied" in answer.line()
    waits = replace(copied, cards=())
    assert taken(decide(mine, [waits], [card()])) == [0]  # of two equal, the lower uid
    assert isinstance(decide(waits, [mine], [card()]), Queued)


# Whose process, whose lock


def test_what_a_dead_one_left_is_no_lease_though_another_user_locks_it(place: Path) -> None:
    dead = subprocess.run(["true"], check=False)
    assert dead.returncode == 0
    content = json.dumps(record(pid=2**22, start_ticks=1))
    left = put(place, content, lock=False)

    def lock() -> None:
        HELD.append(os.open(left, os.O_RDONLY))
        fcntl.flock(HELD[-1], fcntl.LOCK_EX)

    with other_user(lock):
        assert isinstance(turn(place).ask(wait=False), Granted)
        assert not left.exists()


def test_the_folders_owner_can_have_nothing_else_removed_or_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He puts a link to the victim's own files in its place, just after that was checked."""
    mine = place.parent / "run"
    mine.mkdir()
    for name in ("manifest.json", "00000001-1-0000000a.json"):
        (mine / name).write_text("{}")
    kept = turn(place)
    held = turn(place)
    assert isinstance(held.ask(wait=False), Granted)
    claims = kept._book.claims

    def swapped(**told: Any) -> list[Lease]:
        place.rename(place.parent / "aside")
        place.symlink_to(mine)
        return claims(**told)

    monkeypatch.setattr(kept._book, "claims", swapped)
    with pytest.raises(book_module.LeasesUnusable):
        kept.ask(wait=True)
    assert "can't be written anew" in held.refresh()
    assert {path.name for path in mine.iterdir()} == {"manifest.json", "00000001-1-0000000a.json"}
    place.unlink()
    (place.parent / "aside").rename(place)
    (place / "manifest.json").write_text("{}")
    assert isinstance(turn(place).ask(wait=False), Queued)
    assert (place / "manifest.json").exists()  # nor what is no lease by its name


def test_of_another_pid_namespace_the_lock_counts_if_its_own_user_holds_it(place: Path) -> None:
    content = json.dumps(record(pid=7, start_ticks=7, pid_namespace="pid:[1]"))
    with other_user(lambda: put(place, content)):
        assert isinstance(turn(place).ask(wait=False), Queued)
    mine = put(place, content, name="00000002-2-0000000b.json", lock=False)

    def lock() -> None:
        HELD.append(os.open(mine, os.O_RDONLY))
        fcntl.flock(HELD[-1], fcntl.LOCK_EX)

    with other_user(lock):
        assert isinstance(turn(place).ask(wait=False), Granted)


def test_nobody_else_can_lock_a_lease_before_its_writer_does(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, real = [], book_module.try_flock

    def seen(descriptor: int) -> bool:
        modes.append(os.fstat(descriptor).st_mode & 0o7777)
        return real(descriptor)

    monkeypatch.setattr(book_module, "try_flock", seen)
    kept = turn(place)
    kept.ask(wait=False)
    assert modes == [0o1777, 0o600]
    assert [path.stat().st_mode & 0o777 for path in place.glob("*.json")] == [0o644]


def engine(folder: Path, **more: Any) -> None:
    """A run folder whose first trainer is said to be as given."""
    (folder / "engine").mkdir(parents=True, exist_ok=True)
    (folder / "engine" / "rank-0.json").write_text(json.dumps({"boot_id": boot_id(), **more}))


def test_trainers_keep_a_dead_claim_only_as_the_claimants_own_living_processes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place.parent / "run"
    run.mkdir()
    os.chown(run, UID, UID)
    mine = subprocess.Popen(["sleep", "600"])
    told = {"pid": mine.pid, "start_ticks": start_ticks(mine.pid)}

    def dead() -> None:
        put(place, json.dumps(record(pid=2**22, start_ticks=1, folder=str(run))), lock=False)

    def trains(**more: Any) -> None:
        engine(run, pid=os.getpid(), start_ticks=start_ticks(os.getpid()), **more)

    try:
        with other_user(lambda: (dead(), engine(run, pid=1, start_ticks=start_ticks(1)))):
            assert is_free(place)
        with other_user(lambda: (dead(), engine(run, **told))):
            assert is_free(place)
        with other_user(lambda: (dead(), trains(boot_id=None))):
            assert is_free(place)
        with other_user(lambda: (dead(), trains(boot_id="another"))):
            assert is_free(place)
        with other_user(lambda: (dead(), trains())) as other:
            answer = turn(place).ask(wait=False)
            assert isinstance(answer, Queued)
            assert f"supervisor is gone; pid {other.pid} saves" in answer.line()
            os.chown(run, 0, 0)
            assert is_free(place)  # somebody else's folder
            assert list(place.iterdir()) == []
            os.chown(run, UID, UID)
        # it expires: by the file's ctime, which its owner can renew and not set back
        with other_user(lambda: (dead(), trains())):
            [left] = place.iterdir()
            os.utime(left, (1, 2**33))  # a time that its writer can choose says nothing
            assert not is_free(place)
            monkeypatch.setattr(book_module, "ORPHAN_SECONDS", 0.5)
            time.sleep(0.6)
            assert is_free(place)
    finally:
        mine.kill()
        mine.wait()


def test_a_container_id_in_a_folder_makes_nobody_elses_process_the_claimants(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(place.parent / "run")
    run.path.mkdir()
    run.container_id.write_text("a" * 64)
    run.path.chmod(0o755)
    monkeypatch.setattr(look_module, "in_container", lambda _text, found: found == "a" * 64)
    victim = subprocess.Popen(["sleep", "60"])
    try:
        theirs = claim(1, uid=UID, folder=str(run.path), cards=("GPU-0",))
        assert look_module._Owners([theirs]).of(victim.pid) is None
        mine = replace(theirs, uid=os.getuid())
        assert look_module._Owners([mine]).of(victim.pid) == mine.identity
        # nor does a supervisor's pid
        ticks = start_ticks(victim.pid) or 0
        named = replace(theirs, folder="/f", pid=victim.pid, start_ticks=ticks)
        assert look_module._Owners([named]).of(victim.pid) is None
        ours = replace(named, uid=os.getuid())
        assert look_module._Owners([ours]).of(victim.pid) == ours.identity
    finally:
        victim.kill()
        victim.wait()


def test_a_folder_that_never_answers_is_asked_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "_FOLDER_SECONDS", 0.3)
    monkeypatch.setattr(run_files, "_SLOW_SECONDS", 0.25)
    asked: list[Path] = []

    def never(path: Path, *_: object) -> None:  # an automount, FUSE
        asked.append(path)
        time.sleep(600)

    monkeypatch.setattr(run_files, "read_small", never)
    for number in range(200):
        theirs = claim(number, uid=UID, folder=f"/net/{number}", cards=("GPU-0",))
        assert look_module._Owners([theirs]).of(1) is None
    assert len(asked) == 1


# Many files


def test_of_one_user_only_so_many_files_are_read_and_it_is_said(place: Path) -> None:
    def crowd() -> None:
        text = json.dumps(record(cards=[]))
        for number in range(book_module.MOST_CLAIMS + 50):
            put(place, text, name=f"{number:08d}-1-a.json", lock=False)

    first = turn(place, "first")
    assert isinstance(first.ask(wait=False), Granted)
    with other_user(crowd):
        answer = turn(place, "second").ask(wait=False)
        assert isinstance(answer, Queued) and "held by first" in answer.line()
        assert f"{NAME} has more than {book_module.MOST_CLAIMS} files in {place}" in answer.line()


def test_of_a_user_who_queues_many_runs_those_that_hold_cards_are_seen_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "MOST_CLAIMS", 4)
    first = turn(place, "first")
    assert isinstance(first.ask(wait=True), Granted)
    queued = [turn(place, f"queued-{n}") for n in range(6)]
    for each in queued:
        assert isinstance(each.ask(wait=True), Queued)
    first.drop()
    first = turn(place, "last")
    assert isinstance(queued[0].ask(wait=True), Granted)
    assert [c.run for c in LeaseStore(place).claims()] == [f"queued-{n}" for n in range(4)]
    late = turn(place, "late", cards=2)
    assert isinstance(late.ask(wait=True), Queued)
    for each in queued[1:5]:
        each.drop()
    held = [c.run for c in LeaseStore(place).claims() if not c.waits]
    assert held == ["queued-0"]


# The folder's lock, and the folder


def hold(place: Path) -> None:
    HELD.append(os.open(place, os.O_RDONLY))
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)


def test_the_folder_locked_by_another_user_is_gone_on_without(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "MUTEX_SECONDS", 0.5)
    monkeypatch.setattr(book_module, "_POLL_SECONDS", 0.0213)  # by which its waiting is known
    with other_user(lambda: hold(place)) as other:
        first, second = turn(place, "first"), turn(place, "second")
        assert isinstance(first.ask(wait=True), Granted)
        [note] = first.notes
        assert note.startswith(f"{place} stays locked by pid {other.pid} ") and NAME in note
        answer = second.ask(wait=True)
        assert isinstance(answer, Queued) and note in answer.line()
        naps: list[float] = []
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: (naps.append(seconds), sleep(seconds)))
        assert isinstance(second.ask(wait=True), Queued)
        first.drop()
        assert isinstance(second.ask(wait=True), Granted)
        assert book_module._POLL_SECONDS not in naps  # it is not waited for again
        monkeypatch.setattr(time, "sleep", sleep)
    third = turn(place, "third")
    assert isinstance(third.ask(wait=True), Queued) and third.notes == ()


def test_one_locked_by_a_process_of_ones_own_is_refused_by_its_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "MUTEX_SECONDS", 0.2)
    with other_user(lambda: hold(place), uid=0) as other:
        with pytest.raises(book_module.LeasesUnusable) as caught:
            turn(place).ask(wait=False)
        assert caught.value.own and f"stays locked by pid {other.pid} " in caught.value.message


def test_without_the_folders_lock_no_two_get_one_card(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "MUTEX_SECONDS", 0.0)
    monkeypatch.setattr(turn_module, "_TAKE_APART_SECONDS", 0.002)
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    with other_user(lambda: hold(place)):
        everyone = [
            context.Process(target=contend, args=(place, seed, 15, said)) for seed in range(10)
        ]
        for process in everyone:
            process.start()
        heard = [said.get(timeout=600) for _ in everyone]
        for process in everyone:
            process.join(600)
        assert all(isinstance(one, int) for one in heard), heard
        assert sum(heard) > 10


def test_who_was_held_up_between_looking_and_writing_gives_way(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the folder's lock, and was stopped until another went on without."""
    slow, quick = turn(place, "slow"), turn(place, "quick")
    write = slow._book.write
    monkeypatch.setattr(book_module, "MUTEX_SECONDS", 0.0)
    monkeypatch.setattr(book_module, "has_locked", lambda *_: False)  # as another user's would be

    def held_up(claim: Lease) -> Any:
        if not quick._entry:
            assert isinstance(quick.ask(wait=False), Granted)
        return write(claim)

    monkeypatch.setattr(slow._book, "write", held_up)
    answer = slow.ask(wait=False)
    assert isinstance(answer, Queued) and "held by quick" in answer.line()
    assert [each.run for each in LeaseStore(place).claims()] == ["quick"]


def test_a_queued_run_waits_on_whatever_another_user_does_to_the_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards_module, "_STUCK_SECONDS", 0.2)
    monkeypatch.setattr(cards_module, "POLL_SECONDS", 0.1)
    os.chown(place, UID, UID)
    first = turn(place, "first")
    assert isinstance(first.ask(wait=False), Granted)
    folder = RunFolder(place.parent / "run")
    folder.path.mkdir()
    cards = GpuLease(folder, wait=True)
    cards._turn = turn(place, "second")
    blocked = cards._turn.ask(wait=True)
    assert isinstance(blocked, Queued)
    cards._blocked = blocked
    with other_user(lambda: place.chmod(0o777)):  # its owner: anybody could remove leases

        def later() -> None:
            while not any("waits on, though" in each["text"] for each in lines(folder.events)):
                time.sleep(0.02)
            place.chmod(0o1777)
            first.drop()

        threading.Thread(target=later).start()

        class Stop:
            level, interrupted = 0, False

        assert cards.await_turn(Stop(), EventLog(folder)) is None  # type: ignore[arg-type]
    said = [event["text"] for event in lines(folder.events)]
    [told] = [text for text in said if text.startswith("waits on, though")]
    assert f"{place} has mode 0777" in told and f"(as {NAME} or root)" in told
    assert cards._cards is not None
    cards._turn.drop()


def test_a_lease_that_the_folders_owner_removed_is_written_anew_and_said(place: Path) -> None:
    os.chown(place, UID, UID)
    kept = turn(place, "kept")
    assert isinstance(kept.ask(wait=False), Granted)
    assert kept.refresh() == ""
    [lease] = place.iterdir()
    with other_user(lease.unlink):
        assert "written anew" in kept.refresh()
    assert [each.run for each in LeaseStore(place).claims()] == ["kept"]
    with other_user(lambda: place.rename(place.parent / "aside"), uid=0):  # the folder itself
        assert "written anew" in kept.refresh() or not place.exists()


def test_its_holder_says_that_it_lives(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "TOUCH_SECONDS", 0.05)
    kept = turn(place)
    kept.ask(wait=False)
    kept.keep(lambda _text: None)
    [lease] = place.iterdir()
    before = lease.stat().st_ctime_ns
    end = time.monotonic() + 600
    while lease.stat().st_ctime_ns <= before:
        assert time.monotonic() < end
        time.sleep(0.02)
    kept.drop()


# Whatever is in the folder


NUMBERS = st.one_of(
    st.integers(),
    st.integers(1, 10**4).map(lambda digits: 10**digits),
    st.integers(1, 10**4).map(lambda digits: -(10**digits)),
    st.sampled_from([0, 1, 2**22, 2**31, 2**32, 2**63, 2**64]),
)
RAW = st.one_of(
    NUMBERS.map(lambda number: f"{number:d}" if abs(number) < 10**4000 else "9" * 9999),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "-0.0", "true", "null", '""', "{}"]),
    st.sampled_from(['"\\ud800"', '"/\\udcff"', '"/a\\u0000"', '"\\u001b]52;c;eA==\\u0007"']),
    st.text(max_size=30).map(json.dumps),
    st.lists(st.text(max_size=5), max_size=5).map(json.dumps),
    st.integers(1, 7000).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 2000).map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
)
FIELDS = tuple(record())
CHANGES = st.lists(st.tuples(st.sampled_from(FIELDS), RAW), max_size=4)
NAMES = st.one_of(
    st.sampled_from(["1-1-a.json", "00000001-1-b.held.json", ".1-1-c.new", "\udcff.json", ".json"]),
    st.integers(0, 10**25).map(lambda number: f"{number}-1-x.json"),
    st.integers(0, 10**25).map(lambda number: f"{number:020d}-1-x.held.json"),
)
KINDS = st.sampled_from(
    ["file", "file", "file", "file", "locked", "locked", "link", "fifo", "folder", "huge", "socket"]
)
FILES = st.lists(
    st.tuples(NAMES, KINDS, st.booleans(), CHANGES, st.one_of(st.none(), st.binary(max_size=300))),
    max_size=8,
)
RANKS = st.lists(
    st.tuples(st.sampled_from(["pid", "start_ticks", "boot_id", "pid_namespace"]), RAW), max_size=3
)


def hostile(changes: list[tuple[str, str]], told: dict[str, Any]) -> bytes:
    """JSON of a record with some fields replaced by raw text, one twice perhaps."""
    pairs = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in told.items()]
    pairs += [f"{json.dumps(name)}: {text}" for name, text in changes]
    left = {name for name, _ in changes[1:]}
    kept = [pair for pair in pairs if not any(pair.startswith(f'"{name}": "') for name in left)]
    return ("{" + ", ".join(kept) + "}").encode("utf-8", "surrogatepass")


def lay(path: Path, kind: str, content: bytes, target: Path) -> int | None:
    """One thing in the folder; the descriptor of one that is kept locked."""
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "huge":
        with path.open("wb") as stream:
            stream.write(content)
            stream.truncate(1 << 40)
    else:
        path.write_bytes(content)
        if kind == "locked":
            descriptor = os.open(path, os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return descriptor
    return None


@settings(
    max_examples=examples(200, 10_000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(files=FILES, ranks=RANKS, container=st.one_of(st.binary(max_size=80), st.just(b"a" * 64)))
def test_whatever_is_in_the_folder_a_free_card_is_had_and_nothing_is_raised(
    files: list[tuple[str, str, bool, list[tuple[str, str]], bytes | None]],
    ranks: list[tuple[str, str]],
    container: bytes,
) -> None:
    with common_folder() as top, contextlib.ExitStack() as stack:
        place, run = top / "leases", top / "run"
        honest = turn(place, "honest")
        assert isinstance(honest.ask(wait=False), Granted)
        engine(run, boot_id="another", pid=os.getpid(), start_ticks=start_ticks(os.getpid()))
        told = {"boot_id": "another", "pid": 1, "start_ticks": start_ticks(1)}
        (run / "engine" / "rank-1.json").write_bytes(hostile(ranks, told))
        os.mkfifo(run / "engine" / "rank-2.json")
        (run / "container.id").write_bytes(container)
        for name, kind, theirs, changes, content in files:
            if (place / name).exists() or (place / name).is_symlink():
                continue
            # in range but for the changes; what is locked here is of a process that is no more
            gone = {"pid": 2**22, "start_ticks": 1} if kind == "locked" else {}
            text = hostile(changes, record(folder=str(run), cards=["GPU-0"], **gone))
            descriptor = lay(place / name, kind, text if content is None else content, run)
            if descriptor is not None:
                stack.callback(os.close, descriptor)
            if theirs and os.getuid() == 0:
                os.chown(place / name, UID, UID, follow_symlinks=False)
        began = time.process_time()
        waiting = turn(place, "waiting")
        said = waiting.ask(wait=True)
        assert isinstance(said, Queued) and (said.place, said.of) == (1, 1)
        said.line().encode()
        assert [each.run for each in LeaseStore(place).claims()] == ["honest", "waiting"]
        wish = GpuRequest(run="r", folder="/f", count=1, budget_bytes=GIB, share=False)
        seen = look(wish, Still(1), lambda *_: True, LeaseStore(place))
        assert isinstance(seen.answer, Queued) and seen.answer.of == 2
        honest.drop()
        assert isinstance(waiting.ask(wait=True), Granted)
        waiting.drop()
        assert time.process_time() - began < 20


# Whose the folder is


def test_doctor_says_whose_the_folder_is_and_what_makes_it_roots(place: Path) -> None:
    from runner.machine.doctor.leases import Leases, judge_leases, repair_command

    usual = Path("/run/lock/runner-leases")
    stranger = Leases(usual, False, True, UID, NAME, 0o1777, own=False)
    status, found, advice = judge_leases(stranger)
    assert (status, advice) == ("warning", repair_command(stranger))
    assert f"belongs to {NAME}, who could remove the leases of others" in found
    assert "sudo systemd-tmpfiles --create" in repair_command(stranger)
    roots = replace(stranger, uid=0, user="root")
    assert judge_leases(roots)[0] == "ok" and judge_leases(roots)[2] is None
    assert judge_leases(replace(roots, mode=0o755))[0] == "warning"
    assert judge_leases(replace(roots, mode=0o777))[0] == "problem"
    assert judge_leases(replace(roots, is_folder=False))[0] == "problem"
    assert judge_leases(Leases(usual, False, None, None, "", None, own=False))[0] == "ok"
    given = replace(stranger, folder=place, given=True)
    subprocess.run(["chown", "-h", str(UID), place], check=True)
    subprocess.run(["sh", "-c", repair_command(given).replace("sudo ", "")], check=True)
    assert (place.stat().st_uid, place.stat().st_mode & 0o7777) == (0, 0o1777)


def test_the_line_for_systemd_makes_a_strangers_folder_roots(tmp_path: Path) -> None:
    program = shutil.which("systemd-tmpfiles")
    if program is None or os.getuid() != 0:
        pytest.skip("needs systemd-tmpfiles and root")
    folder = tmp_path / "run" / "lock" / "runner-leases"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    os.chown(folder, UID, UID)
    line = templates_folder() / "runner.tmpfiles.conf"
    subprocess.run([program, "--create", f"--root={tmp_path}", str(line)], check=True)
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o7777) == (0, 0o1777)


def test_roots_folder_is_taken_whatever_the_mode_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNNER_LEASES")
    first, second = tmp_path / "lock", tmp_path / "shm"
    first.mkdir(mode=0o755)
    second.mkdir()
    second.chmod(0o1777)
    monkeypatch.setattr(book_module, "PARENTS", (first, second))
    assert book_module.leases_folder() == second / "runner-leases"
    (first / "runner-leases").mkdir()
    (first / "runner-leases").chmod(0o1777)
    assert book_module.leases_folder() == first / "runner-leases"
    os.chown(first / "runner-leases", UID, UID)
    assert book_module.leases_folder() == second / "runner-leases"
