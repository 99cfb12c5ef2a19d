"""A peak of host memory between two samples is known by the kernel's own high-water mark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.common.units import MIB
from runner.machine.host_sampler import HostSampler
from runner.machine.proc import high_water_bytes
from runner.machine.readings import Attribution, Sample
from runner.runs.folder import RunFolder
from runner.supervisor.event_log import EventLog, Peak
from runner.supervisor.guard.policy import Cause
from runner.supervisor.samplers import say_unseen_peak

SPIKES = """
import sys
for line in sys.stdin:
    spike = b"1" * (int(line) << 20)
    del spike
    print("over", flush=True)
"""


class Spiking:
    """A process that takes so many MiB for an instant when it is told to."""

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-E", "-c", SPIKES]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)

    def spike(self, mib: int) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{mib}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "over\n"


@pytest.fixture
def spiking() -> Iterator[Spiking]:
    made = Spiking()
    made.spike(0)  # it is there
    yield made
    made.process.kill()
    made.process.communicate()


def test_a_spike_between_two_samples_is_in_the_later_one(spiking: Spiking) -> None:
    process = psutil.Process(spiking.process.pid)
    sampler = HostSampler(lambda: [process])
    before = sampler.sample()
    assert before.own_bytes is not None and before.own_bytes < 64 * MIB
    spiking.spike(128)
    after = sampler.sample()
    assert after.own_bytes is not None and after.own_bytes < 64 * MIB  # the sample saw nothing
    assert after.high_water_bytes is not None
    assert 120 * MIB < after.high_water_bytes - after.own_bytes < 136 * MIB
    spiking.spike(32)  # below the mark: nothing is known of it
    assert sampler.sample().high_water_bytes is None


def test_a_spike_before_the_first_sample_counts(spiking: Spiking) -> None:
    spiking.spike(128)
    process = psutil.Process(spiking.process.pid)
    first = HostSampler(lambda: [process]).sample()
    assert first.high_water_bytes is not None and first.high_water_bytes > 128 * MIB


def test_of_several_processes_spikes_the_largest_counts_once() -> None:
    """They did not come at the same time: their sum is no figure that the machine saw."""
    two = [Spiking(), Spiking()]
    try:
        for each, mib in zip(two, (64, 128), strict=True):
            each.spike(mib)
        members = [psutil.Process(each.process.pid) for each in two]
        sample = HostSampler(lambda: members).sample()
    finally:
        for each in two:
            each.process.kill()
            each.process.communicate()
    assert sample.own_bytes is not None and sample.high_water_bytes is not None
    assert 120 * MIB < sample.high_water_bytes - sample.own_bytes < 136 * MIB


def test_a_process_that_is_gone_has_no_mark() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert high_water_bytes(gone.pid) is None


HOST = Sample(0.0, 0.0, "host", 300, Attribution.HOST_TREE, None, None, (), 1, None, "pss")


def test_the_mark_is_the_peak_by_a_name_of_its_own() -> None:
    peak = Peak()
    peak.see(replace(HOST, high_water_bytes=500))
    peak.see(HOST)
    assert (peak.value, peak.source) == (500, "host_process_tree:high_water")
    assert peak.by_source == {"host_process_tree:pss": 300, "host_process_tree:high_water": 500}


@pytest.mark.parametrize(
    ("high_water", "cause", "warned"),
    [(500, None, True), (500, Cause.OVER_BUDGET, False), (400, None, False), (None, None, False)],
)
def test_a_peak_over_the_budget_that_nobody_was_stopped_for_is_said(
    high_water: int | None, cause: Cause | None, warned: bool, tmp_path: Path
) -> None:
    peak, record = Peak(), EventLog(RunFolder(tmp_path))
    peak.see(replace(HOST, high_water_bytes=high_water))
    say_unseen_peak(peak, 400, cause, record)
    assert len(record.warnings) == warned
    assert all("between two samples" in text for text in record.warnings)
