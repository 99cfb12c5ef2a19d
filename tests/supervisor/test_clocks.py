"""The wall clock is set while a run waits, trains and is looked at: what is measured stays sane."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from runner.launch.follow import Progress
from runner.machine.leases.schedule import Granted, Queued
from runner.runs.folder import RunFolder
from runner.supervisor.event_log import EventLog
from runner.supervisor.gpu_lease import GpuLease
from runner.supervisor.ranks import reported_bytes
from tests.support.workplace import Workplace, lines, termination

DAY = 86_400.0
JUMPING = """
import time
real, began = time.time, time.monotonic()
time.time = lambda: real() + (SHIFT if time.monotonic() - began > 0.8 else 0.0)
"""
"""sitecustomize.py: of every Python here, eight tenths of a second after its start."""


class Clock:
    """time.time, that can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift, real = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.shift)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def says(folder: RunFolder, **more: Any) -> None:
    line = {"memory_source": "torch_max_reserved", "memory_bytes": 1 << 30, **more}
    folder.metrics.write_text(json.dumps({"time_unix_seconds": time.time(), **line}) + "\n")


@pytest.mark.parametrize("shift", [-DAY, DAY])
def test_what_the_trainer_says_counts_again_from_its_next_line_on(
    shift: float, clock: Clock, tmp_path: Path
) -> None:
    folder, began = RunFolder(tmp_path), time.monotonic() - 5
    asked = lambda: reported_bytes(folder, time.time() - (time.monotonic() - began))  # noqa: E731
    says(folder)
    assert asked() is not None
    clock.shift = shift
    assert asked() is None  # by this clock the line is of another day
    says(folder)
    assert asked() is not None
    says(folder, time_unix_seconds=time.time() - 6)
    assert asked() is None  # an earlier start's


def test_the_wait_for_a_card_is_measured_by_no_wall_clock(clock: Clock, tmp_path: Path) -> None:
    class Turn:
        def ask(self, *, wait: bool) -> Granted:
            clock.shift = DAY
            return Granted(())

        def drop(self) -> None: ...

    class Never:
        level, interrupted = 0, False

    cards = GpuLease(RunFolder(tmp_path), wait=True)
    cards._turn = Turn()  # type: ignore[assignment]
    cards._blocked = Queued(1, ("GPU 0 is held by run-1",), 1, 1)
    assert cards.await_turn(Never(), EventLog(RunFolder(tmp_path))) is None  # type: ignore[arg-type]
    [event] = [e for e in lines(tmp_path / "events.jsonl") if "waited_seconds" in e]
    assert 0.5 < event["waited_seconds"] < 3600 and "waited 0:" in event["text"]


def test_the_speed_is_known_after_the_clock_was_set_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    at = [1000.0, 1002.0, 500.0, 502.0, 504.0]
    records = [
        {"step": step, "loss": 1.0, "time_unix_seconds": when} for step, when in enumerate(at)
    ]
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))

    class Plan:
        engine = "script"
        planned_steps = 104

        class budget:
            limit_bytes = None

    progress = Progress(folder, Plan(), 999.0)  # type: ignore[arg-type]
    progress.update()
    assert progress.line(200).endswith("3:20 left")  # 100 steps of 2 s


@pytest.mark.e2e
@pytest.mark.parametrize("shift", [-DAY, DAY])
def test_a_run_under_a_jumping_clock_is_neither_timed_out_nor_endless(
    shift: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    code = JUMPING.replace("SHIFT", repr(shift))
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    release = tmp_path / "release"
    script = f"sleep 1.5; while [[ ! -e '{release}' ]]; do sleep 0.1; done\n"
    (tmp_path / "train.sh").write_text(script)
    job = "engine: script\nscript: train.sh\ntimeout_minutes: 20\n"
    (tmp_path / "job.yaml").write_text(job)
    place = Workplace(tmp_path)
    started = place.call("train", "job.yaml", "--detach", "--json").json
    [seen] = place.call("ps", "--json").json["runs"]
    assert 0 <= seen["seconds"] < 3600
    release.touch()
    assert place.call("wait", started["run"]).code == 0
    end = termination(Path(started["folder"]))
    assert (end["reason"], 1 < end["seconds"] < 3600) == ("completed", True)
