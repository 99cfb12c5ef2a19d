"""guard.enforcer on real processes: nothing that a run started gets away, and nothing else is hit.

The tree is that of a supervisor process of the test's own, as in use: being a subreaper is a
property of a whole process, and pytest should not adopt orphans.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psutil
import pytest

from runner.machine.nvml import NvmlFailed
from runner.machine.process_tree import confirm_left_device
from runner.machine.readings import DeviceProcess, DeviceReading
from tests.testbed import REPOSITORY

PRELUDE = """
import json, os, signal, subprocess, sys, time
import psutil
from runner.machine.process_tree import ProcessTree, become_subreaper
become_subreaper()
tree = ProcessTree()
def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while True:
        try:
            found = condition()
        except (psutil.Error, ProcessLookupError):  # ended while it was looked at
            found = None
        if found:
            return found
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
"""


def supervise(body: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The orphan sits in a session of its own, its parent and grandparent are gone, SIGTERM is ignored.
ESCAPE = """
main = subprocess.Popen(["bash", "-c",
    "(setsid bash -c \\"trap '' TERM; for i in {1..400}; do sleep 0.05; done\\" &) ; exit 7"])
def escaped():
    return [p for p in tree.members() if p.ppid() == os.getpid() != os.getsid(p.pid) == p.pid]
[orphan] = until(escaped)
until(lambda: any(p.name() == "sleep" for p in tree.members()))  # its trap is set by now
"""


def test_an_escaped_orphan_that_ignores_sigterm_is_found_and_killed() -> None:
    told = supervise(
        ESCAPE
        + """
sessions = [os.getsid(orphan.pid) != os.getsid(0)]
reached = tree.send(signal.SIGTERM, [orphan.pid])
still = [p.pid for p in tree.wait_gone(0.3)]
survivors = tree.kill_all(5)
collected = tree.reap({main.pid})
print(json.dumps({"own session": sessions[0], "reached": reached == [orphan.pid],
  "ignored": orphan.pid in still, "survivors": len(survivors),
  "reaped": os.WTERMSIG(collected[orphan.pid]), "main": main.wait()}))
"""
    )
    assert told == {
        "own session": True,
        "reached": True,
        "ignored": True,
        "survivors": 0,
        "reaped": 9,
        "main": 7,  # its status was left to its Popen
    }


def test_reaping_leaves_the_main_child_alone_and_collects_orphans() -> None:
    told = supervise(
        """
main = subprocess.Popen(["bash", "-c", "(bash -c 'sleep 0.2; exit 5' &) ; exit 7"])
collected = {}
def reaped():
    collected.update(tree.reap({main.pid}))
    return collected
until(reaped)
print(json.dumps([[os.waitstatus_to_exitcode(s) for s in collected.values()], main.wait()]))
"""
    )
    assert told == [[5], 7]


def test_processes_that_breed_while_being_killed_are_all_killed() -> None:
    told = supervise(
        """
main = subprocess.Popen(["bash", "-c", "for i in {1..500}; do setsid sleep 30 & sleep 0.02; done"])
until(lambda: len(tree.members()) > 5)
survivors = tree.kill_all(10)
time.sleep(0.1)
print(json.dumps([len(survivors), len(tree.members()), main.wait()]))
"""
    )
    assert told == [0, 0, -9]


def test_only_members_are_signalled() -> None:
    stranger = subprocess.Popen(["sleep", "30"])
    try:
        told = supervise(
            f"""
main = subprocess.Popen(["sleep", "30"])
reached = tree.send(signal.SIGTERM, [{stranger.pid}, os.getpid(), 1, main.pid])
print(json.dumps([reached == [main.pid], main.wait()]))
"""
        )
        assert told == [True, -15]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_whose_first_thread_ended_is_still_a_member() -> None:
    told = supervise(
        """
main = subprocess.Popen([sys.executable, "-c",
  "import ctypes, threading, time\\n"
  "threading.Thread(target=time.sleep, args=(30,)).start()\\n"
  "ctypes.CDLL(None).pthread_exit(None)"])
until(lambda: psutil.Process(main.pid).status() == psutil.STATUS_ZOMBIE)
seen = [p.pid for p in tree.members()] == [main.pid]
print(json.dumps([seen, len(tree.kill_all(5)), main.wait()]))
"""
    )
    assert told == [True, 0, -9]


@pytest.mark.parametrize("kernel_tells_children", [True, False])
def test_who_is_watched_is_searched_for_now_and_then_and_a_member_told_at_once(
    kernel_tells_children: bool,
) -> None:
    stranger = subprocess.Popen(["sleep", "30"])
    try:
        told = supervise(
            f"""
from runner.machine import process_tree as enforcer
{kernel_tells_children} or setattr(enforcer, "tells_children", lambda: False)
tree, stranger = ProcessTree(), {stranger.pid}
def pids(*seconds): return {{p.pid for p in tree.watched(*seconds)}}
nobody = pids()
first = subprocess.Popen(["sleep", "30"])
seen = [pids() == {{first.pid}}]  # as there was none it searched
main = subprocess.Popen(["bash", "-c", "(setsid sleep 30 &) ; sleep 30; exit 1"])
until(lambda: len(tree.members()) == 4)
new = {{p.pid for p in tree.members()}} - {{first.pid}}
seen += [pids(60) == {{first.pid}}, all(tree.member(pid).pid == pid for pid in new)]
seen += [pids(60) == pids(0) == {{first.pid}} | new]  # and who was told is known from then on
nobodys = [stranger, os.getppid(), os.getpid(), 1, 2**22 - 1]
seen += [[tree.member(pid) for pid in nobodys] == [None] * 5]
first.kill()
until(lambda: psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE)
seen += [pids(60) == pids(0) == new, tree.member(first.pid) is None]
print(json.dumps([len(nobody), seen, len(tree.kill_all(5))]))
"""
        )
    finally:
        stranger.kill()
        stranger.wait()
    assert told == [0, [True] * 7, 0]


def test_threads_children_and_no_threads_are_watched() -> None:
    told = supervise(
        """
main = subprocess.Popen([sys.executable, "-c",
  "import ctypes, subprocess, threading, time\\n"
  "start = lambda: subprocess.Popen(['sleep', '30']).wait()\\n"
  "threading.Thread(target=start).start()\\n"
  "ctypes.CDLL(None).pthread_exit(None)"])  # its first thread, for good
until(lambda: psutil.Process(main.pid).status() == psutil.STATUS_ZOMBIE)
[child] = until(lambda: [p for p in tree.members() if p.name() == "sleep"])
thread = next(t.id for t in psutil.Process(main.pid).threads() if t.id != main.pid)
seen = {p.pid for p in tree.watched()} == {main.pid, child.pid}
as_member = [tree.member(pid) is not None for pid in (main.pid, child.pid, thread)]
print(json.dumps([seen, as_member, len(tree.kill_all(5))]))
"""
    )
    assert told == [True, [True, True, False], 0]


def test_more_children_than_one_read_of_their_list_gives() -> None:
    told = supervise(
        """
main = subprocess.Popen([sys.executable, "-c",
  "import os, time\\n"
  "for _ in range(1200):\\n"
  "    if not os.fork(): time.sleep(60); os._exit(0)\\n"
  "print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
main.stdout.readline()
text = open(f"/proc/{main.pid}/task/{main.pid}/children", "rb").read()
print(json.dumps([len(text) > 4096, len(tree.watched()), len(tree.kill_all(20))]))
"""
    )
    assert told == [True, 1201, 0]


def test_the_processes_of_a_container_are_told_and_forgotten_as_they_end() -> None:
    told = supervise(
        """
from runner.machine.container_tree import ContainerTree
main = subprocess.Popen(["bash", "-c", "sleep 30 & sleep 30 & wait"])
stranger = subprocess.Popen(["sleep", "30"])
container = ContainerTree()
before = [container.watched(), container.member(main.pid)]
container.attach(main.pid)
until(lambda: len(container.watched()) == 3)
pids = {p.pid for p in container.watched()}
seen = [all(container.member(pid).pid == pid for pid in pids), container.member(stranger.pid)]
first, second = sorted(pids - {main.pid})
os.kill(first, signal.SIGKILL)
until(lambda: {p.pid for p in container.watched()} == {main.pid, second})
seen += [container.member(first), first in container._roll, second in container._roll]
print(json.dumps([before, seen, len(container.kill_all(5)), len(tree.kill_all(5))]))
"""
    )
    assert told == [[[], None], [True, None, None, False, True], 0, 0]


class Cards:
    """Readings, one after the other; the last one stays."""

    def __init__(self, *readings: DeviceReading | NvmlFailed) -> None:
        self._readings = list(readings)

    def devices(self) -> list[tuple[int, str | None]]:
        return [(0, "GPU-0")]

    def read(self, index: int) -> DeviceReading:
        reading = self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]
        if isinstance(reading, NvmlFailed):
            raise reading
        return reading


def card(*pids: int, lost: bool = False, listed: bool = True) -> DeviceReading:
    processes = tuple(DeviceProcess(pid, None) for pid in pids) if listed else None
    return DeviceReading(
        0, "GPU-0", "X", 100, 10, 90, 0, 2, None, None, None, lost=lost, processes=processes
    )


NOWHERE = (2**22 - 1, 2**22 - 2)  # above what pid_max gives by default: no such processes
GONE = dict.fromkeys(NOWHERE)


def test_pids_that_leave_the_card_in_time_are_confirmed_gone() -> None:
    assert confirm_left_device(Cards(card(*NOWHERE), card(NOWHERE[0]), card(9)), GONE, 5) == []


def test_pids_that_stay_are_a_stuck_context() -> None:
    cards = Cards(card(*NOWHERE, 9))
    assert confirm_left_device(cards, GONE, 0.05, [0]) == sorted(NOWHERE)


def test_a_process_that_hangs_is_a_stuck_context_and_one_that_has_its_pid_is_not() -> None:
    other = subprocess.Popen(["sleep", "30"])
    try:
        alive = psutil.Process(other.pid)
        assert confirm_left_device(Cards(card(other.pid)), {other.pid: alive}, 0.05) == [other.pid]
        assert confirm_left_device(Cards(card(other.pid)), {other.pid: None}, 5) == []
    finally:
        other.kill()
        other.wait()


def test_what_nvml_cannot_tell_is_not_confirmed() -> None:
    assert confirm_left_device(Cards(card(listed=False)), GONE, 0.05) is None
    assert confirm_left_device(Cards(NvmlFailed("gone")), GONE, 0.05) is None
    assert confirm_left_device(Cards(card(lost=True, listed=False)), GONE, 0.05) == []
