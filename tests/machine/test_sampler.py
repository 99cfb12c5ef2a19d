"""guard.sampler: figures of real processes, and whose memory is whose on a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from runner.common.units import GIB, MIB
from runner.machine.container_cgroup import in_container
from runner.machine.host_sampler import HostSampler
from runner.machine.nvml import NvmlFailed
from runner.machine.nvml_sampler import NvmlSampler, Reported, take_baseline
from runner.machine.readings import Attribution, DeviceProcess, DeviceReading
from runner.machine.schedule import Schedule
from tests.testbed import H100, FakeNvml

CONTAINER = "4f" * 32


# On the host -------------------------------------------------------------------------------------


@pytest.fixture
def hungry() -> Iterator[psutil.Process]:
    """A process that holds 200 MiB, half of it shared with a child that it forked."""
    program = (
        "import os, time\n"
        "half = bytearray(os.urandom(1 << 20)) * 100\n"
        "pid = os.fork()\n"
        "more = bytearray(os.urandom(1 << 20)) * 100 if pid else b''\n"
        "print('ready', flush=True) if pid else None\n"
        "time.sleep(30)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        process = psutil.Process(child.pid)
        yield process
        for one in [*process.children(), process]:
            one.kill()


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def test_host_memory_counts_shared_pages_once(hungry: psutil.Process) -> None:
    sample = HostSampler(lambda: family(hungry)).sample()
    assert sample.own_bytes is not None
    assert 200 * MIB < sample.own_bytes < 260 * MIB
    assert (sample.kind, sample.measure, sample.processes) == ("host", "pss", 2)
    assert sample.attribution is Attribution.HOST_TREE
    assert sample.failure is None
    assert sample.total_bytes == psutil.virtual_memory().total
    json.dumps(sample.to_record(), allow_nan=False)


def test_between_exact_readings_host_memory_moves_with_rss() -> None:
    program = (
        "import sys\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "more = b'x' * (100 << 20)\n"
        "print('grown', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    grower = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert grower.stdin is not None and grower.stdout is not None
    with grower:
        grower.stdout.readline()
        process = psutil.Process(grower.pid)
        sampler = HostSampler(lambda: [process], exact_seconds=3600)
        before = sampler.sample().own_bytes
        grower.stdin.write("\n")
        grower.stdin.flush()
        grower.stdout.readline()
        after = sampler.sample()  # no exact reading is due for an hour
        exactly = HostSampler(lambda: [process]).sample().own_bytes
        grower.kill()
    assert before is not None and after.own_bytes is not None and exactly is not None
    assert 99 * MIB < after.own_bytes - before < 104 * MIB
    assert abs(after.own_bytes - exactly) < 4 * MIB
    assert after.measure == "pss"


def test_a_fork_is_not_counted_twice_between_exact_readings(hungry: psutil.Process) -> None:
    listed = [hungry]
    sampler = HostSampler(lambda: listed, exact_seconds=3600)
    sampler.sample()
    listed.extend(hungry.children())
    both = sampler.sample().own_bytes
    assert both is not None and both < 260 * MIB


def test_where_pss_is_not_told_rss_is_used_and_said(
    hungry: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: psutil.Process) -> Any:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    sample = HostSampler(lambda: family(hungry)).sample()
    assert sample.measure == "rss"
    assert sample.own_bytes is not None
    assert sample.own_bytes > 300 * MIB  # the shared half, twice


def test_a_process_that_vanished_is_skipped(hungry: psutil.Process) -> None:
    gone = subprocess.Popen(["sleep", "30"])
    listed = psutil.Process(gone.pid)
    gone.kill()
    gone.wait()
    sample = HostSampler(lambda: [listed, hungry]).sample()
    assert sample.processes == 1
    assert sample.own_bytes is not None and sample.own_bytes > 100 * MIB
    nobody = HostSampler(lambda: [listed]).sample()
    assert nobody.own_bytes is None
    assert nobody.failure == "no live process of the run"


def test_a_failed_sample_is_unknown_and_never_zero() -> None:
    def broken() -> list[psutil.Process]:
        raise OSError("no /proc here")

    sample = HostSampler(broken).sample()
    assert sample.own_bytes is None
    assert sample.measure is None
    assert sample.attribution is Attribution.NONE
    assert "no /proc here" in (sample.failure or "")


# On cards ----------------------------------------------------------------------------------------

ME = os.getpid()
STRANGER = next(pid for pid in (os.getppid(), *psutil.pids()) if pid not in (0, 1, ME))
NOWHERE = 2**22 - 1  # above what pid_max gives by default: a pid of another namespace


def card(
    used: int | None, *processes: tuple[int, int | None], index: int = 0, **other: Any
) -> DeviceReading:
    reading = DeviceReading(
        index=index,
        uuid=f"GPU-{index}",
        name="X",
        total_bytes=80 * GIB,
        used_bytes=used,
        free_bytes=None if used is None else 80 * GIB - used,
        reserved_bytes=0,
        memory_api=2,
        utilization_percent=None,
        temperature_celsius=None,
        power_watts=None,
        lost=False,
        processes=tuple(DeviceProcess(*process) for process in processes),
    )
    return replace(reading, **other)


class Cards:
    """A DeviceSource that answers what the test put there."""

    def __init__(self, *readings: DeviceReading | str) -> None:
        self.now = list(readings)

    def devices(self) -> list[tuple[int, str | None]]:
        return [(index, f"GPU-{index}") for index in range(len(self.now))]

    def read(self, index: int) -> DeviceReading:
        reading = self.now[index]
        if isinstance(reading, str):
            raise NvmlFailed(reading)
        return reading


def sampler(
    cards: Cards,
    *before: DeviceReading,
    container_id: str | None = None,
    reported: Callable[[], Reported | None] = lambda: None,
    members: Callable[[], list[psutil.Process]] = lambda: [psutil.Process()],
) -> NvmlSampler:
    baseline = {reading.index: reading for reading in before}
    indices = range(len(cards.now))
    return NvmlSampler(cards, indices, members, baseline, lambda: container_id, reported)


def test_our_processes_are_ours_and_a_neighbour_is_not() -> None:
    sample = sampler(Cards(card(50 * GIB, (ME, 3 * GIB), (STRANGER, 47 * GIB))), card(0)).sample()
    assert sample.own_bytes == 3 * GIB
    assert sample.attribution is Attribution.NVML_PID
    assert sample.measure == "nvml"
    assert sample.failure is None


def test_a_process_that_is_listed_before_it_is_known_as_a_member_is_ours_at_once() -> None:
    late = psutil.Process(STRANGER)
    cards = Cards(card(50 * GIB, (ME, 3 * GIB), (STRANGER, 40 * GIB), (1, 7 * GIB)))
    ours = NvmlSampler(
        cards,
        [0],
        lambda: [psutil.Process()],
        {0: card(0)},
        member=lambda pid: late if pid == STRANGER else None,
    )
    sample = ours.sample()
    assert (sample.own_bytes, sample.attribution) == (43 * GIB, Attribution.NVML_PID)
    assert set(ours.seen) == {ME, STRANGER}


def test_the_fullest_card_counts_and_the_tightest_is_told() -> None:
    cards = Cards(card(5 * GIB, (ME, 4 * GIB)), card(79 * GIB, (ME, 6 * GIB), index=1))
    sample = sampler(cards, card(0), card(0, index=1)).sample()
    assert sample.own_bytes == 6 * GIB
    assert sample.free_bytes == 1 * GIB
    assert len(sample.devices) == 2


def test_a_run_that_is_not_on_the_card_yet_uses_nothing() -> None:
    assert sampler(Cards(card(3 * MIB)), card(0)).sample().own_bytes == 0
    neighbour = sampler(Cards(card(9 * GIB, (STRANGER, 9 * GIB))), card(0)).sample()
    assert (neighbour.own_bytes, neighbour.attribution) == (0, Attribution.NVML_PID)


@pytest.mark.parametrize("processes", [(), ((NOWHERE, 9 * GIB),)])
def test_inside_a_container_where_no_pid_matches_nothing_is_attributed(
    processes: tuple[tuple[int, int | None], ...],
) -> None:
    sample = sampler(Cards(card(9 * GIB, *processes)), card(0)).sample()
    assert sample.own_bytes is None
    assert sample.attribution is Attribution.NONE
    assert sample.measure is None
    assert "can't be told" in (sample.failure or "")


def test_processes_in_the_runs_container_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pathlib.Path.read_text",
        lambda path, **_: (
            f"0::/system.slice/docker-{CONTAINER}.scope\n"
            if path.parts[2] == str(STRANGER)
            else "0::/user.slice\n"
        ),
    )
    cards = Cards(card(9 * GIB, (STRANGER, 7 * GIB), (1, 2 * GIB)))
    sample = sampler(cards, card(0), container_id=CONTAINER, members=list).sample()
    assert (sample.own_bytes, sample.attribution) == (7 * GIB, Attribution.CONTAINER_PID)


def test_what_the_trainer_says_comes_before_a_difference() -> None:
    cards = Cards(card(9 * GIB, (ME, None)))
    sample = sampler(cards, card(1 * GIB), reported=lambda: (5 * GIB, 1.0)).sample()
    assert (sample.own_bytes, sample.attribution) == (5 * GIB, Attribution.TRAINER)
    assert sample.measure is None and sample.complete
    silent = sampler(cards, card(1 * GIB), reported=lambda: None).sample()
    assert (silent.own_bytes, silent.attribution) == (8 * GIB, Attribution.DEVICE_DELTA)


def test_the_trainer_is_heard_while_nvml_does_not_answer() -> None:
    sample = sampler(Cards("driver gone"), card(0), reported=lambda: (5 * GIB, 1.0)).sample()
    assert (sample.own_bytes, sample.attribution) == (5 * GIB, Attribution.TRAINER)
    assert sample.failure == "driver gone"


@pytest.mark.parametrize(
    "before", [card(1 * GIB, (STRANGER, None)), card(1 * GIB, processes=None), None]
)
def test_no_difference_where_somebody_was_or_may_have_been_there(
    before: DeviceReading | None,
) -> None:
    cards = Cards(card(9 * GIB, (ME, None)))
    sample = sampler(cards, *([before] if before else [])).sample()
    assert (sample.own_bytes, sample.attribution) == (None, Attribution.NONE)


def test_a_neighbour_that_came_and_went_ends_differences_for_good() -> None:
    cards = Cards(card(9 * GIB, (ME, None)))
    ours = sampler(cards, card(0))
    assert ours.sample().attribution is Attribution.DEVICE_DELTA
    cards.now = [card(20 * GIB, (ME, None), (STRANGER, None))]
    assert ours.sample().attribution is Attribution.NONE
    cards.now = [card(9 * GIB, (ME, None))]
    assert ours.sample().own_bytes is None


def test_no_difference_between_two_ways_of_counting() -> None:
    cards = Cards(card(9 * GIB, (ME, None)))
    assert sampler(cards, card(0, memory_api=1)).sample().own_bytes is None


def test_without_a_list_of_members_a_card_full_of_others_is_not_zero() -> None:
    def broken() -> list[psutil.Process]:
        raise psutil.AccessDenied(1)

    cards = Cards(card(9 * GIB, (ME, 9 * GIB)))
    for members in (broken, list):
        sample = sampler(cards, card(0), members=members).sample()
        assert sample.own_bytes is None
        assert sample.failure


def test_memory_of_a_member_that_ended_is_still_ours() -> None:
    child = subprocess.Popen(["sleep", "30"])
    cards = Cards(card(9 * GIB, (ME, 1 * GIB), (child.pid, 2 * GIB)))
    alive = [psutil.Process(), psutil.Process(child.pid)]
    ours = sampler(cards, card(0), members=lambda: alive)
    assert ours.sample().own_bytes == 3 * GIB
    child.kill()
    child.wait()
    alive.pop()
    assert ours.sample().own_bytes == 3 * GIB


def test_a_zombie_that_waits_to_be_reaped_is_not_a_neighbour() -> None:
    child = subprocess.Popen(["sleep", "30"])
    cards = Cards(card(9 * GIB, (ME, 1 * GIB), (child.pid, 2 * GIB)))
    alive = [psutil.Process(), psutil.Process(child.pid)]
    ours = sampler(cards, card(0), members=lambda: alive)
    ours.sample()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    alive.pop()
    assert ours.sample().own_bytes == 3 * GIB
    child.wait()


class Another(psutil.Process):
    """The process that had this pid before: the same number, another start."""

    def is_running(self) -> bool:
        return False


def test_a_pid_that_is_anothers_by_now_is_not_ours() -> None:
    """Injected where pids and start times meet; for real in test_pid_reuse."""
    stranger = subprocess.Popen(["sleep", "30"])
    cards = Cards(card(9 * GIB, (ME, 1 * GIB), (stranger.pid, 8 * GIB)))
    members = [psutil.Process(), Another(stranger.pid)]
    ours = sampler(cards, card(0), members=lambda: members)
    assert ours.sample().own_bytes == 1 * GIB
    assert stranger.pid not in ours.seen
    cards.now = [card(9 * GIB, (ME, None), (stranger.pid, None))]
    assert ours.sample().own_bytes is None  # and the card's total says nothing of us any more
    stranger.kill()
    stranger.wait()


def test_what_a_dead_process_left_is_not_confused_with_who_has_its_pid_later() -> None:
    child = subprocess.Popen(["sleep", "30"])
    known = psutil.Process(child.pid)
    cards = Cards(card(9 * GIB, (ME, 1 * GIB), (child.pid, 2 * GIB)))
    members = [psutil.Process(), known]
    ours = sampler(cards, card(0), members=lambda: members)
    assert ours.sample().own_bytes == 3 * GIB
    child.kill()
    child.wait()
    members.pop()
    cards.now = [card(1 * GIB, (ME, 1 * GIB))]
    ours.sample()  # it has left the card: from here on its pid stands for nobody of the run
    cards.now = [card(9 * GIB, (ME, 1 * GIB), (child.pid, 7 * GIB))]
    assert ours.sample().own_bytes == 1 * GIB
    assert ours.seen[child.pid] == known  # for the driver's accounting, once all is over


def test_a_report_that_was_there_before_is_not_fresh() -> None:
    said = [(5 * GIB, 100.0)]
    ours = sampler(Cards("driver gone"), card(0), reported=lambda: said[0])
    assert [ours.sample().fresh for _ in range(3)] == [True, False, False]
    said[0] = (5 * GIB, 101.0)
    assert [ours.sample().fresh for _ in range(2)] == [True, False]


def test_a_card_without_a_figure_makes_the_sample_incomplete() -> None:
    cards = Cards(card(5 * GIB, (ME, 4 * GIB)), "driver gone")
    sample = sampler(cards, card(0), card(0, index=1)).sample()
    assert (sample.own_bytes, sample.complete) == (4 * GIB, False)
    whole = Cards(card(5 * GIB, (ME, 4 * GIB)), card(0, (ME, 0), index=1))
    assert sampler(whole, card(0), card(0, index=1)).sample().complete


def test_a_container_is_known_once_its_id_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: f"0::/docker/{CONTAINER}\n")
    told: list[str | None] = [None]
    cards = Cards(card(9 * GIB, (STRANGER, 7 * GIB)))
    ours = NvmlSampler(cards, [0], list, {0: card(0)}, lambda: told[0])
    assert ours.sample().own_bytes is None
    told[0] = CONTAINER[:5]  # names one container in a million
    assert ours.sample().own_bytes is None
    told[0] = CONTAINER
    assert ours.sample().own_bytes == 7 * GIB


def test_a_lost_card_is_told_and_not_zero() -> None:
    gone = card(None, lost=True, processes=None)
    sample = sampler(Cards(gone), card(0)).sample()
    assert sample.gpu_lost
    assert sample.own_bytes is None
    assert sample.failure == "GPU 0 is lost"
    json.dumps(sample.to_record(), allow_nan=False)


def test_a_card_that_cannot_be_read_is_left_out_of_the_baseline() -> None:
    assert set(take_baseline(Cards(card(1), "gone"), [0, 1])) == {0}


@pytest.mark.parametrize(
    "text",
    [
        f"0::/system.slice/docker-{CONTAINER}.scope\n",
        f"12:memory:/docker/{CONTAINER}\n11:cpu:/docker/{CONTAINER}\n",
        f"0::/kubepods.slice/pod1/cri-containerd-{CONTAINER}.scope\n",
        f"0::/docker/{CONTAINER}/init\n",
    ],
)
def test_a_cgroup_path_names_its_container(text: str) -> None:
    assert in_container(text, CONTAINER)
    assert in_container(text, CONTAINER[:12])
    assert not in_container(text, "ab" * 32)


def test_on_the_stub_from_end_to_end(fake_nvml: FakeNvml) -> None:
    idle = f"gpu 0 GPU-0 {H100.replace('20000', '100')}"
    fake_nvml.set(idle)
    told = fake_nvml.probe(
        "import os, pathlib, psutil\n"
        "from runner.machine.nvml_sampler import NvmlSampler, take_baseline\n"
        "with Nvml() as nvml:\n"
        "    s = NvmlSampler(nvml, [0], lambda: [psutil.Process()], take_baseline(nvml, [0]))\n"
        "    first = s.sample()\n"
        f"    text = 'gpu 0 GPU-0 {H100}\\ncompute 0 %d 15000\\n' % os.getpid()\n"
        "    pathlib.Path(os.environ['NVML_STUB']).write_text(text)\n"
        "    tell([first.to_record(), s.sample().to_record()])\n"
    )
    first, second = (SimpleNamespace(**record) for record in told)
    assert (first.own_bytes, first.attribution) == (0, "nvml_pid")
    assert (second.own_bytes, second.attribution) == (15000 * MIB, "nvml_pid")
    assert second.schema_version == 1


# The schedule ------------------------------------------------------------------------------------


def test_deadlines_are_absolute() -> None:
    schedule = Schedule(100.0)
    assert schedule.wait_seconds(100.3, 1.0) == pytest.approx(0.7)
    assert schedule.wait_seconds(101.9, 1.0) == pytest.approx(0.1)
    assert schedule.wait_seconds(102.0, 0.1) == pytest.approx(0.1)
    assert schedule.overruns == 0


def test_missed_deadlines_are_skipped_and_counted() -> None:
    schedule = Schedule(0.0)
    assert schedule.wait_seconds(3.5, 1.0) == pytest.approx(0.5)
    assert schedule.overruns == 3
    assert schedule.wait_seconds(4.0, 1.0) == pytest.approx(1.0)
    assert schedule.overruns == 3
