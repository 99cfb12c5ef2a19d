"""What the training processes say: whom a signal may be sent to, and which figures still hold."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.common import durable
from runner.common.process_times import pid_namespace, start_ticks
from runner.common.units import GIB, MIB
from runner.runs.folder import RunFolder
from runner.supervisor.actions import ActionExecutor
from runner.supervisor.event_log import EventLog
from runner.supervisor.guard import policy
from runner.supervisor.ranks import RankStatuses, reported_bytes


class Tree:
    """Members that note which signals they were sent."""

    def __init__(self, *pids: int) -> None:
        self._members = [psutil.Process(pid) for pid in pids]
        self.sent: list[tuple[signal.Signals, set[int]]] = []

    def members(self) -> list[psutil.Process]:
        return self._members

    workers = members

    def watched(self, search_seconds: float = 1.0) -> list[psutil.Process]:
        return self._members

    def member(self, pid: int) -> psutil.Process | None:
        return next((each for each in self._members if each.pid == pid), None)

    def send(self, number: signal.Signals, pids: Any) -> list[int]:
        self.sent.append((number, set(pids)))
        return sorted(pids)

    def kill_all(self, timeout_seconds: float = 10.0) -> list[psutil.Process]:
        return []

    def reap(self, leave: Any) -> dict[int, int]:
        return {}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.engine.mkdir()
    return folder


def status(folder: RunFolder, rank: int, pid: int, ticks: int | None, handles: list[str]) -> None:
    durable.write_json(
        folder.engine_status(rank),
        {
            "pid": pid,
            "start_ticks": ticks,
            "pid_namespace": pid_namespace(),
            "handles": handles,
        },
    )


def test_a_checkpoint_is_asked_only_of_those_that_handle_the_signal(folder: RunFolder) -> None:
    """Unhandled it kills: the second process has said nothing of SIGUSR1."""
    me, parent = os.getpid(), os.getppid()
    status(folder, 0, me, start_ticks(me), ["SIGUSR1", "SIGTERM"])
    status(folder, 1, parent, start_ticks(parent), ["SIGTERM"])
    tree, engines = Tree(me, parent), RankStatuses(folder)
    assert engines.ready(tree)
    ActionExecutor(tree, engines, EventLog(folder)).act(policy.AskCheckpoint(950, 1000))
    assert tree.sent == [(signal.SIGUSR1, {me})]


def test_a_pid_with_another_start_time_is_nobody(folder: RunFolder) -> None:
    me = os.getpid()
    status(folder, 0, me, (start_ticks(me) or 0) - 1, ["SIGUSR1"])
    engines = RankStatuses(folder)
    assert engines.pids() == engines.savers() == set()
    assert not engines.ready(Tree(me))


def line(folder: RunFolder, **values: Any) -> None:
    usual = {
        "memory_source": "torch_max_reserved",
        "memory_bytes": 5 * GIB,
        "time_unix_seconds": time.time(),
    }
    folder.metrics.write_text(json.dumps({**usual, **values}) + "\n")


def test_the_trainers_report_is_its_reservation_and_what_is_outside(folder: RunFolder) -> None:
    line(folder, time_unix_seconds=(now := time.time()))
    assert reported_bytes(folder, 0.0) == (5 * GIB + 512 * MIB, now)
    line(folder, memory_outside_bytes=700 * MIB, time_unix_seconds=now)
    assert reported_bytes(folder, 0.0) == (5 * GIB + 700 * MIB, now)
    line(folder, memory_outside_bytes=1, time_unix_seconds=now)  # never less than the least
    assert reported_bytes(folder, 0.0) == (5 * GIB + 512 * MIB, now)


def test_what_an_earlier_start_said_is_not_about_this_one(folder: RunFolder) -> None:
    """A run that is resumed at once would be ended for the memory of processes that are gone."""
    line(folder)
    assert reported_bytes(folder, time.time() - 5) is not None
    assert reported_bytes(folder, time.time() + 0.01) is None


@pytest.mark.parametrize(
    "values",
    [
        {"time_unix_seconds": time.time() - 31},
        {"memory_source": "process_rss"},
        {"memory_bytes": None},
        {"memory_bytes": "5 GiB"},
        {"memory_outside_bytes": "much"},
        {"time_unix_seconds": None},
    ],
)
def test_what_is_old_or_no_figure_is_no_report(folder: RunFolder, values: dict[str, Any]) -> None:
    line(folder, **values)
    assert reported_bytes(folder, 0.0) is None
