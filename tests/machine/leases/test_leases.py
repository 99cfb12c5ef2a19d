"""Who gets a card: the decision (pure), the leases as real locked files, and real runs on the stub.

The runs are scripts (hold_gpu.py) under the real command line and supervisor; the cards are the
NVML stub's, into which each trainer writes what it holds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.errors import RefusedError
from runner.common.units import GIB
from runner.common.yaml_text import to_yaml
from runner.machine.leases.models import Card, CardProcess, Lease, foreign_bytes
from runner.machine.leases.schedule import Granted, Queued, Unsatisfiable, decide
from runner.machine.leases.store import LeaseStore
from runner.machine.leases.turn import GpuRequest, LeaseRequest
from runner.machine.readings import DeviceReading
from runner.plans.base import PlannedBudget
from runner.report.preflight import Preflight, preflight_line
from tests.support.workplace import Finished, Workplace, lines, termination
from tests.testbed import FakeNvml, build_nvml
from tests.whole_runs.test_gpu_guard import supervise

HOLD = Path(__file__).with_name("hold_gpu.py")
ONE = ("driver 570.124.06", "gpu 0 GPU-a 81559 3 0 35 70000 0 NVIDIA H100")
TWO = (*ONE, "gpu 1 GPU-b 81559 3 0 35 70000 0 NVIDIA H100")


# The decision


def card(index: int = 0, *, free: int = 80, processes: tuple[CardProcess, ...] = ()) -> Card:
    return Card(index, f"GPU-{index}", "NVIDIA H100", 80 * GIB, free * GIB, 0, processes)


def claim(number: int, *, budget: int | None = 12, count: int = 1, **more: Any) -> Lease:
    told = {"run": f"run-{number}", "folder": "/f", "user": "alice", "share": False, "uid": 7}
    told |= more
    size = None if budget is None else budget * GIB
    return Lease(
        number=number, pid=100 + number, start_ticks=1, count=count, budget_bytes=size, **told
    )


def taken(answer: object) -> list[int]:
    assert isinstance(answer, Granted), answer
    return [each.index for each in answer.cards]


def test_a_card_of_one_run_is_not_anothers_unless_both_share_and_fit() -> None:
    alone, sharing = claim(1, cards=("GPU-0",)), claim(1, cards=("GPU-0",), share=True)
    for holder, wish in (
        (alone, claim(2)),
        (alone, claim(2, share=True)),
        (sharing, claim(2)),
        (sharing, claim(2, share=True, budget=69)),
    ):
        answer = decide(wish, [holder], [card()])
        assert isinstance(answer, Queued)
        assert "GPU 0 is held by run-1 (alice, pid 101, budget 12.00 GiB)" in answer.line()
    assert taken(decide(claim(2, share=True, budget=68), [sharing], [card()])) == [0]


def test_who_is_on_a_card_is_named_and_a_desktop_is_no_reason() -> None:
    neighbour = CardProcess(4242, 30 * GIB, "bob", "python")
    answer = decide(claim(1), [], [card(free=50, processes=(neighbour,))])
    assert isinstance(answer, Queued)
    assert answer.reasons == ("GPU 0 is used by pid 4242 python (bob, 30.00 GiB)",)
    shared = decide(claim(1, share=True), [], [card(free=50, processes=(neighbour,))])
    assert taken(shared) == [0]
    tight = decide(claim(1, share=True, budget=51), [], [card(free=50, processes=(neighbour,))])
    assert isinstance(tight, Queued) and "50.00 GiB is left of 80.00 GiB" in tight.line()
    screen = CardProcess(7, GIB // 2, "alice", "Xorg", desktop=True)
    assert taken(decide(claim(1), [], [card(free=79, processes=(screen,))])) == [0]
    games = replace(screen, used_bytes=2 * GIB)
    assert isinstance(decide(claim(1), [], [card(free=78, processes=(games,))]), Queued)


def test_memory_has_to_be_free_and_a_budget_to_fit_the_card() -> None:
    for budget, free, needed in ((12, 11, "12.00 GiB"), (None, 71, "72.00 GiB")):
        answer = decide(claim(1, budget=budget), [], [card(free=free)])
        assert isinstance(answer, Queued), budget
        assert f"{free}.00 GiB free of 80.00 GiB, and {needed} is needed" in answer.line()
    assert taken(decide(claim(1, budget=None), [], [card(free=72)])) == [0]
    never = decide(claim(1, budget=81), [], [card(), card(1)])
    assert isinstance(never, Unsatisfiable)
    assert "budget.gpu_memory is 81.00 GiB, but GPU 0 (NVIDIA H100) has 80.00 GiB" in never.why


def test_several_cards_are_taken_together_and_the_planned_and_emptiest_first() -> None:
    cards = [card(0, free=70), card(1), card(2)]
    assert taken(decide(claim(1), [], cards)) == [1]
    assert taken(decide(claim(1), [], cards, ["GPU-2"])) == [2]
    assert taken(decide(claim(1, count=3), [], cards)) == [1, 2, 0]
    promised = claim(1, share=True, budget=40, cards=("GPU-1",))  # nothing of it is used yet
    assert taken(decide(claim(2, share=True), [promised], cards)) == [2]
    only = claim(3, allowed=("GPU-0",))
    assert taken(decide(only, [], cards)) == [0]
    assert isinstance(decide(claim(1, count=4), [], cards), Unsatisfiable)


def test_a_later_one_overtakes_nobody_who_waits_for_the_same_card() -> None:
    cards = [card(0), card(1)]
    holder = claim(1, cards=("GPU-1",))
    two = claim(2, count=2)
    answer = decide(claim(3), [holder, two], cards)
    assert isinstance(answer, Queued) and (answer.place, answer.of) == (2, 2)
    assert "GPU 0 is not given yet: run-2 (alice, pid 102" in answer.line()
    elsewhere = claim(2, count=2, allowed=("GPU-1", "GPU-2"))
    assert taken(decide(claim(3), [holder, elsewhere], [*cards, card(2)])) == [0]
    soon = claim(2)  # it takes card 0 within a second, and card 1 is left
    assert taken(decide(claim(3), [soon], cards)) == [1]
    # a sharing run would keep a card from ever being empty for the one who waits for it alone
    sharing = claim(1, share=True, cards=("GPU-0",))
    assert isinstance(decide(claim(3, share=True), [sharing, claim(2)], [card()]), Queued)


SIZES = st.sampled_from([None, 4, 12, 30, 40, 79])
WISHES = st.builds(
    lambda budget, share, count, only: (budget, share and budget is not None, count, only),
    SIZES,
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([None, (0,), (1, 2), (0, 1, 2)]),
)


@settings(max_examples=300, deadline=None)
@given(
    wishes=st.lists(WISHES, min_size=1, max_size=9),
    steps=st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=40),
    others=st.lists(st.integers(0, 60), min_size=3, max_size=3),
)
def test_whatever_the_order_of_events_no_card_is_given_twice(
    wishes: list[tuple[int | None, bool, int, tuple[int, ...] | None]],
    steps: list[tuple[int, bool]],
    others: list[int],
) -> None:
    cards = [
        card(i, free=80 - used, processes=(CardProcess(9, used * GIB),) if used else ())
        for i, used in enumerate(others)
    ]
    there = {
        number: claim(
            number,
            budget=budget,
            share=share,
            count=count,
            allowed=None if only is None else tuple(f"GPU-{i}" for i in only),
        )
        for number, (budget, share, count, only) in enumerate(wishes, 1)
    }
    for who, ends in steps:
        number = who + 1
        if number not in there:
            continue
        if ends:
            del there[number]
            continue
        if there[number].waits:
            answer = decide(there[number], there.values(), cards)
            if isinstance(answer, Granted):
                mine = tuple(each.uuid for each in answer.cards)
                assert len(set(mine)) == there[number].count
                for earlier in there.values():  # who came first and waits could not have had them
                    if earlier.waits and earlier.number < number:
                        before = decide(earlier, there.values(), cards)
                        if isinstance(before, Queued):
                            able = {c.uuid for c in cards if earlier.may_take(c)}
                            assert not able & set(mine)
                there[number] = replace(there[number], cards=mine)
        for each in cards:
            holders = [one for one in there.values() if each.uuid in one.cards]
            promised = sum(one.budget_bytes or 0 for one in holders)
            if any(not one.share for one in holders):
                assert len(holders) == 1 and not each.processes
            assert len(holders) < 2 or promised + foreign_bytes(each, holders) <= 80 * GIB


# The leases as files


class Still:
    """Cards that never change and are empty: only leases can keep anybody off them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def devices(self) -> list[tuple[int, str | None]]:
        return [(index, f"GPU-{index}") for index in range(self._count)]

    def read(self, index: int) -> DeviceReading:
        free = 80 * GIB
        return DeviceReading(
            *(index, f"GPU-{index}", "NVIDIA H100", free, 0, free, 0, 2, 0, 30, 50.0, False, ())
        )


def turn(book: Path, name: str = "run", cards: int = 1, **more: Any) -> LeaseRequest:
    wish = {"count": 1, "budget_bytes": 12 * GIB, "share": False, **more}
    return LeaseRequest(
        GpuRequest(run=name, folder=str(book), **wish),
        Still(cards),
        lambda *_: True,
        LeaseStore(book),
    )


def contend(book: Path, seed: int, rounds: int, said: Any) -> None:
    """Take and drop cards, each take proved by a lock of its own that must be free then."""
    import fcntl

    chance, got = random.Random(seed), 0  # noqa: S311 - no secret
    for _ in range(rounds):
        mine = turn(book, f"run-{seed}", cards=2, count=chance.choice([1, 1, 2]))
        answer = mine.ask(wait=chance.random() < 0.5)
        for _ in range(200):
            if not isinstance(answer, Queued) or mine._entry is None:
                break
            time.sleep(0.001)
            answer = mine.ask(wait=True)
        if isinstance(answer, Granted):
            got += 1
            with contextlib.ExitStack() as stack:
                proofs = []
                for each in answer.cards:
                    path = Path(f"{book}-{each.uuid}")
                    path.touch()
                    proof = stack.enter_context(path.open("r+b", buffering=0))
                    proofs.append(proof)
                    try:
                        fcntl.flock(proof, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        # the kernel lets go of a killed process's files one by one, in an order of
                        # its own: that its lease was free first is no second holder
                        if path.read_bytes() != b"killed":
                            said.put(f"{each.uuid} was given twice")
                        fcntl.flock(proof, fcntl.LOCK_EX)
                    os.pwrite(proof.fileno(), b"lives.", 0)
                time.sleep(chance.random() * 0.003)
                if chance.random() < 0.05:
                    for proof in proofs:
                        os.pwrite(proof.fileno(), b"killed", 0)
                    said.put(got)
                    said.close()
                    said.join_thread()
                    os.kill(os.getpid(), signal.SIGKILL)
        mine.drop()
    said.put(got)


@pytest.mark.e2e
def test_of_many_processes_at_once_no_two_get_one_card_and_the_killed_free_theirs(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    book = tmp_path / "leases"
    everyone = [context.Process(target=contend, args=(book, seed, 25, said)) for seed in range(16)]
    for process in everyone:
        process.start()
    heard = [said.get(timeout=120) for _ in everyone]
    for process in everyone:
        process.join(60)
    assert all(isinstance(one, int) for one in heard), heard
    assert sum(heard) > 16
    assert any(process.exitcode == -signal.SIGKILL for process in everyone)
    assert isinstance(turn(book, cards=2, count=2).ask(wait=False), Granted)  # nothing is left held
    assert stat.S_IMODE(book.stat().st_mode) == 0o1777


def test_a_killed_holder_frees_its_card_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold() -> None:
        kept = turn(tmp_path, "dies")
        assert isinstance(kept.ask(wait=False), Granted)
        ready.set()
        time.sleep(60)

    holder = context.Process(target=hold)
    holder.start()
    assert ready.wait(20)
    second = turn(tmp_path, "second")
    answer = second.ask(wait=True)
    assert isinstance(answer, Queued)
    assert f"dies (root, pid {holder.pid}" in answer.line() or "dies (" in answer.line()
    holder.kill()
    holder.join()
    assert isinstance(second.ask(wait=True), Granted)
    assert len(list(tmp_path.glob("*.json"))) == 1  # what the dead left is removed
    second.drop()
    assert list(tmp_path.glob("*.json")) == []


def test_a_waiting_ticket_keeps_its_place_and_dies_with_its_holder(tmp_path: Path) -> None:
    first, second, third = (turn(tmp_path, name) for name in ("first", "second", "third"))
    assert isinstance(first.ask(wait=True), Granted)
    answers = [second.ask(wait=True), third.ask(wait=True)]
    assert [(one.place, one.of) for one in answers if isinstance(one, Queued)] == [(1, 1), (2, 2)]
    first.drop()
    assert isinstance(third.ask(wait=True), Queued)  # asked first, but came later
    second.drop()  # as a process that ends does
    assert isinstance(third.ask(wait=True), Granted)


def test_a_ticket_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    first, second = turn(tmp_path, "first"), turn(tmp_path, "second")
    first.ask(wait=True)
    second.ask(wait=True)
    numbers = [each.number for each in LeaseStore(tmp_path).claims()]
    [waiting] = {*tmp_path.glob("*.json")} - {*tmp_path.glob("*.held.json")}
    waiting.unlink()
    assert [each.number for each in LeaseStore(tmp_path).claims()] == numbers[:1]
    second.ask(wait=True)
    assert [each.number for each in LeaseStore(tmp_path).claims()] == numbers


def test_what_others_put_into_the_folder_can_neither_mislead_nor_hold_up(tmp_path: Path) -> None:
    book = tmp_path / "leases"
    mine = turn(book)
    assert isinstance(mine.ask(wait=False), Granted)
    secret = tmp_path / "secret"
    secret.write_text("x")
    os.mkfifo(book / "00000001-1-a.json")
    (book / "00000001-1-b.json").symlink_to(secret)
    (book / "00000001-1-c.json").write_text("{")
    (book / "00000001-1-d.json").write_bytes(b"[" * 100_000)
    (book / "00000009-1-e.json").mkdir()
    # a claim whose text is meant for the terminal: it counts while its lock is held
    theirs = turn(book, "evil\x1b[31m\nrun", share=True)
    mine.drop()
    assert isinstance(theirs.ask(wait=False), Granted)
    answer = turn(book).ask(wait=False)
    assert isinstance(answer, Queued) and "evil?[31m?run" in answer.line()
    assert secret.read_text() == "x"


@pytest.mark.parametrize("kind", ["link", "file", "open to all"])
def test_a_folder_that_is_not_safe_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    book = tmp_path / "leases"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        book.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        book.write_text("")
    else:
        book.mkdir()
        book.chmod(0o777)
    with pytest.raises(RefusedError) as caught:
        turn(book).ask(wait=False)
    assert str(book) in caught.value.message and "RUNNER_LEASES" in (caught.value.hint or "")


def test_a_trainer_that_outlives_its_supervisor_keeps_the_card_before_it_has_any_memory_there(
    tmp_path: Path,
) -> None:
    """It may load weights still: NVML does not list it yet."""
    from runner.common.process_times import boot_id, start_ticks

    book = tmp_path / "leases"
    (tmp_path / "run" / "engine").mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "60"])
    status = {"pid": sleeper.pid, "start_ticks": start_ticks(sleeper.pid), "boot_id": boot_id()}
    (tmp_path / "run" / "engine" / "rank-0.json").write_text(json.dumps(status))
    first = turn(book, "first")
    first._wish = replace(first._wish, folder=str(tmp_path / "run"))
    first.ask(wait=False)
    assert first._entry is not None
    os.close(first._entry._descriptor)  # as the kernel does for a killed supervisor
    answer = turn(book, "second").ask(wait=False)
    assert isinstance(answer, Queued)
    assert f"its supervisor is gone; pid {sleeper.pid} saves and ends" in answer.line()
    sleeper.kill()
    sleeper.wait()
    assert isinstance(turn(book, "second").ask(wait=False), Granted)


# The line before a start


def test_the_line_before_a_start() -> None:
    budget = PlannedBudget(kind="gpu", limit_bytes=12 * GIB)
    idle = replace(card(1, free=79), total_bytes=int(79.6 * GIB))
    facts = Preflight(budget=budget, cards=[idle], driver_version="570.124.06", caps_torch=True)
    assert preflight_line(facts, gpu=True) == (
        "gpu",
        "GPU 1 (NVIDIA H100, idle) · 79.00 GiB free of 79.6 · budget 12.00 GiB · torch's cap + "
        "NVML watchdog (no driver limit: driver 570 < 615)",
    )
    neighbour = CardProcess(4242, 30 * GIB, "bob", "python")
    busy = replace(idle, processes=(neighbour,))
    sharing = claim(3, share=True, cards=(idle.uuid,))
    shared = replace(facts, cards=[busy], claims=[sharing], driver_version="615.10")
    text = preflight_line(shared, gpu=True)[1]
    assert "beside run-3 (alice, pid 103, budget 12.00 GiB), pid 4242 python (bob, 30.00" in text
    assert text.endswith("(no driver limit: not in a container)")
    assert "read back" in preflight_line(replace(shared, in_container=True), gpu=True)[1]
    blind = replace(facts, nvml_failure="driver not loaded")
    assert "only torch's cap guards it" in preflight_line(blind, gpu=True)[1]
    host = Preflight(
        budget=PlannedBudget(kind="host", limit_bytes=8 * GIB), host_available_bytes=20 * GIB
    )
    assert preflight_line(host, gpu=False) == (
        "host",
        "host memory 20.00 GiB available · budget 8.00 GiB · watchdog on the process tree",
    )


# Runs on the stub


@dataclass(frozen=True)
class Node(Workplace):
    """A machine with stub cards, leases of its own, and a folder to call `runner` in."""

    nvml: FakeNvml
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        leases = {"RUNNER_LEASES": str(self.folder / "leases")}
        return {**super().environment(), **self.nvml.environment(), **leases, **self.variables}

    def job(self, name: str, *, mib: int = 2000, share: bool = False, **more: Any) -> str:
        """A job that holds `mib` of its card until `release(name)`."""
        shutil.copy(HOLD, self.folder / "hold_gpu.py")
        path = self.folder / f"{name}.yaml"
        record = {
            "engine": "script",
            "script": "hold_gpu.py",
            "arguments": [str(mib), "{source}/release-" + name, *more.pop("arguments", [])],
            "launch": {"on": "local", "device": "cuda", "share": share},
            "budget": {"gpu_memory": "12GiB", "grace_seconds": 5},
        }
        path.write_text(to_yaml({**record, **more}))
        return str(path)

    def release(self, name: str) -> None:
        (self.folder / f"release-{name}").touch()

    def run_of(self, name: str) -> Path:
        """The folder of the one run of a job."""
        (found,) = until(lambda: list((self.folder / "runs" / name).glob("*")), "its folder")
        return found

    def holds(self, name: str) -> Path:
        """Its run, once it holds its card."""
        run = self.run_of(name)
        log = run / "logs" / "train.log"
        until(lambda: log.exists() and "holds" in log.read_text(), f"{name} on its card")
        return run

    def waits(self, name: str, *says: str) -> Path:
        """Its run, once its place in the queue says all that."""
        run = self.run_of(name)
        until(lambda: all(text in place_of(run) for text in says or ("place",)), f"{name}: {says}")
        return run


def until(condition: Callable[[], Any], what: str, seconds: float = 1800) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


def place_of(run: Path) -> str:
    try:
        return str(json.loads((run / "queue.json").read_text())["text"])
    except (OSError, ValueError):
        return ""


def ended(process: subprocess.Popen[str], seconds: float = 1800) -> Finished:
    out, err = process.communicate(timeout=seconds)
    assert "Traceback" not in err, err
    return Finished(process.returncode, out, err)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("nvml-leases"))


@pytest.fixture
def node(tmp_path: Path, library: Path) -> Iterator[Node]:
    nvml = FakeNvml(library, tmp_path / "nvml.state")
    nvml.set(*ONE)
    yield Node(tmp_path, nvml)
    for path in tmp_path.glob("runs/*/*/supervisor.json"):
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            for each in psutil.process_iter(["cmdline"]):
                if str(path.parent) in " ".join(each.info["cmdline"] or []):
                    each.kill()


@pytest.mark.e2e
def test_two_runs_and_one_card_the_second_waits_and_follows(node: Node) -> None:
    first = node.start("train", node.job("first"))
    run = node.holds("first")
    refused = node.call("train", node.job("unpatient"))
    assert refused.code == 3 and not (node.folder / "runs" / "unpatient").exists()
    assert f"GPU 0 is held by first/{run.name} (" in refused.err
    assert "--wait" in refused.err and "launch.share: true" in refused.err
    second = node.start("train", node.job("second"), "--wait")
    waiting = node.waits("second", "place 1 of 1 for 1 GPU: GPU 0 is held by first/")
    report = node.call("report", str(waiting), "--json")
    assert report.json["state"] == "queued" and report.json["queue"]["place"] == 1
    assert "queued" in node.call("report", str(waiting)).out
    node.release("first")
    assert ended(first).code == 0
    node.holds("second")
    node.release("second")
    done = ended(second)
    assert done.code == 0, done.err
    assert "\nwaiting    place 1 of 1 for 1 GPU: GPU 0 is held by first/" in done.err
    assert any("waited" in event["text"] for event in lines(waiting / "events.jsonl"))
    assert not (waiting / "queue.json").exists()
    assert list((node.folder / "leases").iterdir()) == []


@pytest.mark.e2e
def test_a_killed_supervisors_trainer_keeps_the_card_as_long_as_nvml_lists_it(node: Node) -> None:
    first = node.start("train", node.job("first", arguments=["stubborn"]))
    run = node.holds("first")
    second = node.start("train", node.job("second"), "--wait")
    node.waits("second", "held by first/")
    trainer = next(p for p in psutil.process_iter(["cmdline"]) if _is_trainer(p, "release-first"))
    os.kill(json.loads((run / "supervisor.json").read_text())["pid"], signal.SIGKILL)
    assert ended(first).code == 128 + signal.SIGKILL
    waiting = node.waits("second", f"GPU 0 is used by pid {trainer.pid} ")
    time.sleep(2.5)
    assert place_of(waiting) and (waiting / "logs" / "train.log").exists() is False
    trainer.kill()
    trainer.wait(10)
    time.sleep(1.5)
    assert place_of(waiting)  # its context is still on the card
    node.nvml.set(*ONE)
    node.holds("second")
    node.release("second")
    assert ended(second).code == 0


def _is_trainer(process: psutil.Process, text: str) -> bool:
    words = process.info["cmdline"] or []
    return any("hold_gpu" in word for word in words[:2]) and text in " ".join(words)


@pytest.mark.e2e
def test_sharing_runs_are_together_while_they_fit_and_order_is_kept(node: Node) -> None:
    size = {"gpu_memory": "30GiB"}
    running = {}
    for name in ("one", "two"):
        running[name] = node.start("train", node.job(name, share=True, budget=size))
        node.holds(name)
    for number, name in enumerate(("three", "four"), 1):
        budget = size if name == "three" else {"gpu_memory": "4GiB"}
        job = node.job(name, share=True, budget=budget)
        running[name] = node.start("train", job, "--wait")
        node.waits(name, f"place {number} of {number}")
    # it would fit, but three came first and waits for the same card
    assert "three/" in place_of(node.run_of("four")) and "came first" in place_of(
        node.run_of("four")
    )
    node.waits("three", "place 1 of 2", "held by one/", "two/")
    node.release("one")
    node.holds("three")
    node.holds("four")
    for name in running:
        node.release(name)
    for name, process in running.items():
        assert ended(process).code == 0, name


@pytest.mark.e2e
def test_a_card_with_a_foreign_process_is_refused_by_name_and_another_is_taken(node: Node) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        busy = [TWO[0], TWO[1].replace(" 3 ", " 30003 "), f"compute 0 {sleeper.pid} 30000"]
        node.nvml.set(*busy)
        refused = node.call("train", node.job("alone"))
        assert refused.code == 3, refused.err
        assert f"GPU 0 is used by pid {sleeper.pid} sleep (" in refused.err
        assert "29.30 GiB" in refused.err
        checked = node.call("check", node.job("alone"))
        assert checked.code == 0 and "GPU 0 is used by pid" in checked.out
        node.nvml.set(*busy, TWO[2])
        node.release("alone")
        done = node.call("train", node.job("alone"), "--gpus", "1")
        assert done.code == 0, done.err
        assert "gpu        GPU 1 (NVIDIA H100, idle)" in done.err
        assert "holds GPU-b" in (node.last / "logs" / "train.log").read_text()
        both = node.call("train", node.job("alone"), "--gpus", "2")
        assert both.code == 3 and "no 2 GPUs are free" in both.err and "GPU 1 is free" in both.err
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.e2e
def test_a_budget_above_the_card_is_refused_with_its_size(node: Node) -> None:
    refused = node.call("train", node.job("large", budget={"gpu_memory": "90GiB"}), "--wait")
    assert refused.code == 3
    assert "budget.gpu_memory is 90.00 GiB, but GPU 0 (NVIDIA H100) has 79.65 GiB" in refused.err
    crossed = node.call("train", node.job("large"), "--gpus", "2", "--set", "launch.device=cpu")
    assert crossed.code == 2 and "exclude each other" in crossed.err
    alone = node.call("train", node.job("large", share=True), "--set", "budget.gpu_memory=null")
    assert alone.code == 2 and "launch.share" in alone.err and "budget.gpu_memory" in alone.err


@pytest.mark.e2e
def test_a_run_on_the_cpu_takes_no_lease_and_a_dry_run_none(node: Node) -> None:
    node.nvml.set(*ONE, "compute 0 1 70000")
    job = node.job("script")
    (node.folder / "hold_gpu.py").write_text("print('no card')")
    cpu = ("--set", "launch.device=cpu", "--set", "budget={host_memory: 2GiB}")
    done = node.call("train", job, *cpu)
    assert done.code == 0, done.err
    assert "host       host memory " in done.err and "budget 2.00 GiB" in done.err
    dry = node.call("train", job, "--dry-run")
    assert dry.code == 0 and "gpu        waits, place 1 of 1" in dry.err
    assert not (node.folder / "leases").exists()


@pytest.mark.e2e
def test_it_runs_on_the_card_that_came_free_and_its_files_say_so(node: Node) -> None:
    node.nvml.set(*TWO)
    running = {}
    for name, uuid in (("first", "GPU-a"), ("second", "GPU-b")):
        running[name] = node.start("train", node.job(name))
        assert f"holds {uuid}" in (node.holds(name) / "logs" / "train.log").read_text()
    running["third"] = node.start("train", node.job("third"), "--wait")
    run = node.waits("third", "GPU 0 is held by first/", "GPU 1 is held by second/")
    planned = (run / "plan.yaml").read_text()
    assert "gpu_uuids:\n  - GPU-a" in planned
    picky = replace(node, variables={"CUDA_VISIBLE_DEVICES": "0"})
    running["fourth"] = picky.start("train", node.job("fourth"), "--wait")
    node.waits("fourth", "place 2 of 2 for 1 GPU: GPU 0 ")
    assert "GPU 1" not in place_of(node.run_of("fourth"))
    node.release("second")
    assert "holds GPU-b" in (node.holds("third") / "logs" / "train.log").read_text()
    node.waits("fourth", "place 1 of 1")
    assert (run / "plan.yaml").read_text() == planned.replace("GPU-a", "GPU-b").replace(
        "gpu_indices:\n  - 0", "gpu_indices:\n  - 1"
    )
    script = run / "launch.sh"
    assert "CUDA_VISIBLE_DEVICES=GPU-b" in script.read_text() and os.access(script, os.X_OK)
    said = [event["text"] for event in lines(run / "events.jsonl")]
    assert "runs on GPU 1 (GPU-b), planned was GPU 0 (GPU-a); the plan says so now" in said
    for name in running:
        node.release(name)
    for name, process in running.items():
        assert ended(process).code == 0, name
    both = node.call("train", node.job("first"), "--gpus", "2", "--fresh")
    assert both.code == 0, both.err
    assert "holds GPU-a,GPU-b" in (node.last / "logs" / "train.log").read_text()


@pytest.mark.e2e
@pytest.mark.parametrize("by", ["ctrl-c", "stop"])
@pytest.mark.e2e
def test_a_stop_while_it_waits_ends_it_with_nothing_started(node: Node, by: str) -> None:
    first = node.start("train", node.job("first"))
    node.holds("first")
    second = node.start("train", node.job("second"), "--wait")
    run = node.waits("second")
    if by == "stop":
        stopped = node.call("stop", str(run))
        assert stopped.code == 0 and "it only waits for a GPU" in stopped.err
    else:
        second.send_signal(signal.SIGINT)
    done = ended(second)
    end = termination(run)
    assert done.code == end["exit_code"] == (143 if by == "stop" else 130)
    assert end["reason"] == "stopped" and "nothing was started" in end["message"]
    assert not (run / "logs" / "train.log").exists() and not (run / "queue.json").exists()
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["complete"], manifest["results"]) == (False, None)
    assert manifest["never_began"]["message"] == end["message"]
    refused = node.call("reproduce", str(run))
    assert refused.code == 3 and "while it waited; nothing was started" in refused.err
    assert len(list((node.folder / "leases").glob("*.json"))) == 1  # the first's
    node.release("first")
    assert ended(first).code == 0


@pytest.mark.e2e
def test_waiting_is_not_counted_by_the_timeout(node: Node) -> None:
    first = node.start("train", node.job("first"))
    node.holds("first")
    second = node.start("train", node.job("second", timeout_minutes=0.3), "--wait")
    run = node.waits("second")
    time.sleep(19)
    node.release("second")
    node.release("first")
    assert ended(first).code == 0
    done = ended(second)
    assert done.code == 0, done.err
    assert termination(run)["seconds"] < 18


@pytest.mark.e2e
def test_without_nvml_it_runs_and_says_that_no_lease_was_taken(
    tmp_path: Path, library: Path
) -> None:
    code, folder, _ = supervise(tmp_path, library, "unseen", first_state=("init 9",))
    assert code == 0
    assert any("no lease was taken" in event["text"] for event in lines(folder / "events.jsonl"))
