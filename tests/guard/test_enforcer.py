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

from runner.guard.enforcer import confirm_left_device
from runner.guard.nvml import NvmlFailed
from runner.guard.records import DeviceProcess, DeviceReading
from tests.testbed import REPOSITORY

PRELUDE = """
import json, os, signal, subprocess, sys, time
import psutil
from runner.guard.enforcer import ProcessTree, become_subreaper
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
