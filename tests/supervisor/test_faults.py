"""What a driver can do to the guard, from a real library through nvidia-ml-py to the decision.

Each fault is a state of the NVML stub. What must hold: a figure that is the run's own or none,
never a zero for a failure, never another's memory, and never the end of a run for either.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.testbed import H100, FakeNvml

MIB = 1024**2
GPU0 = f"gpu 0 GPU-0 {H100}"
BEFORE = GPU0.replace(" 20000 ", " 100 ")

# One process samples through the real binding and decides under a clock of its own.
LOOP = """
import os, pathlib, psutil
from dataclasses import replace
from runner.supervisor.guard import policy
from runner.machine.nvml_sampler import NvmlSampler, take_baseline

state_file = pathlib.Path(os.environ["NVML_STUB"])
def put(*lines):
    new = state_file.with_suffix(".probe")
    new.write_text("\\n".join(lines) + "\\n")
    new.replace(state_file)

class Life:
    def __init__(self, nvml, reported=lambda: None, members=None, indices=(0,)):
        members = members or (lambda: [psutil.Process()])
        self.sampler = NvmlSampler(
            nvml, indices, members, take_baseline(nvml, indices), reported=reported
        )
        self.state, self.at, self.actions, self.last = policy.initial(12 << 30), 0.0, [], None

    def go(self, seconds):
        "One sample a second."
        for _ in range(seconds):
            self.at += 1
            self.last = replace(self.sampler.sample(), monotonic_seconds=self.at)
            self.state, actions = policy.advance(
                self.state, policy.Observation.of(self.last, handles_checkpoint=True, alive=True)
            )
            self.actions += [type(action).__name__ for action in actions]
        return [self.last.own_bytes, str(self.last.attribution), self.actions]
"""


def live(nvml: FakeNvml, body: str) -> Any:
    return nvml.probe(LOOP + body)


def mine(mib: object) -> str:
    """A put() that has this process on the card with so many MiB; "-" where NVML does not tell."""
    return f"put({GPU0!r}, f'compute 0 {{os.getpid()}} {mib}')"


def test_memory_v1_alone_serves_as_well(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(BEFORE, "no DeviceGetMemoryInfo_v2")
    told = live(
        fake_nvml,
        "with Nvml() as nvml:\n"
        "    life = Life(nvml)\n"
        f"    {mine(13000)[:-1]}, 'no DeviceGetMemoryInfo_v2')\n"
        "    tell([life.go(3), life.last.devices[0].memory_api])\n",
    )
    actions = ["Warn", "AskCheckpoint", "Terminate"]
    assert told == [[13000 * MIB, "nvml_pid", actions], 1]


def test_memory_v2_is_used_where_it_is(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(BEFORE)
    told = live(
        fake_nvml,
        "with Nvml() as nvml:\n"
        f"    life = Life(nvml)\n    {mine(5000)}\n"
        "    tell([life.go(2), life.last.devices[0].memory_api])\n",
    )
    assert told == [[5000 * MIB, "nvml_pid", []], 2]


def test_an_old_driver_without_the_newer_symbols_is_enforced_on(old_nvml: FakeNvml) -> None:
    old_nvml.set(BEFORE)
    told = live(
        old_nvml,
        "with Nvml() as nvml:\n"
        f"    life = Life(nvml)\n    {mine(13000)}\n"
        "    tell([life.go(3), life.last.devices[0].memory_api])\n",
    )
    assert told == [[13000 * MIB, "nvml_pid", ["Warn", "AskCheckpoint", "Terminate"]], 1]


def test_where_bytes_are_not_available_the_card_alone_speaks_for_the_run(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.set(BEFORE)
    body = f"with Nvml() as nvml:\n    life = Life(nvml)\n    {mine('-')}\n    tell(life.go(3))\n"
    own = (20000 - 100) * MIB
    assert live(fake_nvml, body)[:2] == [own, "device_delta"]
    # and for nobody where another process is listed, or was there first
    fake_nvml.set(BEFORE)
    shared = body.replace("{os.getpid()} -'", "{os.getpid()} -', 'compute 0 1 -'")
    assert live(fake_nvml, shared) == [None, "unattributed", []]
    fake_nvml.set(BEFORE, "compute 0 1 50")
    assert live(fake_nvml, body) == [None, "unattributed", []]


def test_where_bytes_are_not_available_the_trainer_is_asked_before_the_card(
    fake_nvml: FakeNvml,
) -> None:
    fake_nvml.set(BEFORE)
    told = live(
        fake_nvml,
        "with Nvml() as nvml:\n"
        f"    life = Life(nvml, reported=lambda: (7 << 30, 1.0))\n    {mine('-')}\n"
        "    tell(life.go(3))\n",
    )
    assert told == [7 << 30, "trainer_reported", []]


@pytest.mark.parametrize(
    "fault",
    [
        "no DeviceGetComputeRunningProcesses_v3",  # a driver without process lists
        "code DeviceGetComputeRunningProcesses_v3 4",  # one that does not let us see them
        "code DeviceGetMemoryInfo 999', 'code DeviceGetMemoryInfo_v2 999",
        "code DeviceGetHandleByIndex_v2 18",  # the driver was updated under a running NVML
        "code DeviceGetHandleByIndex_v2 999",  # the card was detached by a daemon-reload
        "code DeviceGetHandleByIndex_v2 1",  # NVML forgot that it was opened
    ],
)
def test_a_fault_in_mid_run_is_blindness_that_is_said_and_kills_nobody(
    fake_nvml: FakeNvml, fault: str
) -> None:
    """The card's total is over the budget all the while, and the run is not where it is seen."""
    fake_nvml.set(BEFORE)
    told = live(
        fake_nvml,
        "with Nvml() as nvml:\n"
        "    life = Life(nvml)\n"
        f"    {mine(9000)}\n"
        "    before = life.go(2)[:2]\n"
        f"    {mine(9000)[:-1]}, '{fault}')\n"
        "    during = life.go(40)[:2]\n"
        f"    {mine(9000)}\n"
        "    tell([before, during, life.go(1), life.last.failure])\n",
    )
    ours = [9000 * MIB, "nvml_pid"]
    blind = [None, "unattributed"]
    assert told == [ours, blind, [*ours, ["Unenforced", "EnforcedAgain"]], None]


def test_nvml_that_dies_in_mid_run_is_blindness(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(BEFORE)
    told = live(
        fake_nvml,
        "with Nvml() as nvml:\n"
        f"    life = Life(nvml)\n    {mine(9000)}\n    life.go(2)\n"
        "    state_file.unlink()\n"
        "    tell(life.go(40))\n",
    )
    assert told == [None, "unattributed", ["Unenforced"]]


def test_a_card_lost_in_mid_run_is_a_reason_of_its_own(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(BEFORE)
    lost = GPU0.replace(" 452000 0 ", " 452000 15 ")
    told = live(
        fake_nvml,
        "with Nvml() as nvml:\n"
        f"    life = Life(nvml)\n    {mine(9000)}\n    life.go(2)\n    put({lost!r})\n"
        "    tell([life.go(12), str(life.state.cause)])\n",
    )
    assert told == [[None, "unattributed", ["Terminate", "Kill"]], "gpu_lost"]


def test_one_card_of_two_that_fails_is_said_and_the_other_is_enforced(fake_nvml: FakeNvml) -> None:
    other = BEFORE.replace("gpu 0 GPU-0", "gpu 1 GPU-1")
    fake_nvml.set(BEFORE, other)
    told = live(
        fake_nvml,
        "with Nvml() as nvml:\n"
        "    life = Life(nvml, indices=(0, 1))\n"
        "    pid = os.getpid()\n"
        f"    put({GPU0!r}, {other!r}, f'compute 0 {{pid}} 9000', f'compute 1 {{pid}} 100')\n"
        "    life.go(2)\n"
        f"    put({GPU0!r}, f'compute 0 {{pid}} 9000')\n"
        "    half = life.go(20)\n"
        f"    put({GPU0!r}, f'compute 0 {{pid}} 13000')\n"
        "    tell([list(half), life.go(2)])\n",
    )
    actions = ["Unenforced", "Warn", "AskCheckpoint", "Terminate"]
    assert told[0][:2] == [9000 * MIB, "nvml_pid"]
    assert told[1] == [13000 * MIB, "nvml_pid", actions]


def test_a_pid_of_another_living_process_is_never_the_runs(fake_nvml: FakeNvml) -> None:
    """NVML lists the pid that a process of the run had; somebody else has it now."""
    fake_nvml.set(BEFORE)
    told = live(
        fake_nvml,
        "import subprocess\n"
        "class Dead(psutil.Process):\n"
        "    def is_running(self): return False\n"
        "other = subprocess.Popen(['sleep', '30'])\n"
        "with Nvml() as nvml:\n"
        "    life = Life(nvml, members=lambda: [psutil.Process(), Dead(other.pid)])\n"
        f"    put({GPU0!r}, f'compute 0 {{other.pid}} 70000', f'compute 0 {{os.getpid()}} 400')\n"
        "    found = life.go(5)\n"
        "other.kill()\n"
        "tell(found)\n",
    )
    assert told == [400 * MIB, "nvml_pid", []]
