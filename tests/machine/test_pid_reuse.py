"""A pid counts only with its process: for real, in a pid namespace where numbers can be dealt out.

The kernel gives the next pid after /proc/sys/kernel/ns_last_pid, which root may write in a
namespace of its own: so a foreign process gets the very pid of a dead one of the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.testbed import H100, REPOSITORY, FakeNvml

NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]

PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
import psutil
from runner.machine.container_tree import ContainerTree
from runner.machine.process_tree import ProcessTree, confirm_left_device, signal_process
from runner.machine.nvml import Nvml
from runner.machine.nvml_sampler import NvmlSampler, take_baseline

def sleeper(pid=None, prelude=()):
    "A process with this very pid."
    for _ in range(50):
        if pid is not None:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        child = subprocess.Popen([*prelude, "sleep", "60"])
        if pid in (None, child.pid):
            return child
        child.kill(); child.wait()
    raise SystemExit("no such pid to be had")

def reused():
    "The run's process, dead, and a foreign one with its pid."
    ours = sleeper()
    known = psutil.Process(ours.pid)
    time.sleep(0.05)  # a start time of its own: the kernel counts them in hundredths of a second
    ours.kill(); ours.wait()
    foreign = sleeper(ours.pid)
    assert foreign.pid == known.pid and psutil.pid_exists(known.pid)
    return known, foreign
"""


def can_deal_out_pids() -> bool:
    test = "import os; open('/proc/sys/kernel/ns_last_pid', 'w').write('500')"
    try:
        done = subprocess.run(
            [*NAMESPACE, sys.executable, "-c", test], capture_output=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _namespace() -> None:
    if not can_deal_out_pids():
        pytest.skip("no pid namespace of one's own here (unshare, ns_last_pid)")


def inside(body: str, nvml: FakeNvml | None = None) -> Any:
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", PRELUDE + body],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=None if nvml is None else nvml.environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_with_a_dead_ones_pid_is_never_signalled() -> None:
    told = inside(
        """
known, foreign = reused()
class Tree(ProcessTree):
    def members(self): return [known]
sent = signal_process(known, signal.SIGKILL)
reached = Tree().send(signal.SIGTERM, [known.pid])
Tree().kill_all(0.2)
time.sleep(0.1)
print(json.dumps([sent, reached, foreign.poll()]))
"""
    )
    assert told == [False, [], None]


def test_who_has_a_dead_members_pid_is_not_watched_as_that_one() -> None:
    told = inside(
        """
tree = ProcessTree()
other, ours = sleeper(), sleeper()
before = {p.pid: p for p in tree.watched()}
time.sleep(0.05)
ours.kill(); ours.wait()
foreign = sleeper(ours.pid)
unsearched = [p.pid for p in tree.watched(60)] == [other.pid]
after = {p.pid: p for p in tree.watched(0)}  # here it is a child as well: a member, but a new one
same = [after[pid] == before[pid] for pid in (other.pid, ours.pid)]
reached = [tree.member(pid) == before[pid] for pid in (other.pid, ours.pid)]
print(json.dumps([unsearched, len(after), same, reached]))
"""
    )
    assert told == [True, 2, [True, False], [True, False]]


def test_a_containers_first_process_is_not_whoever_has_its_pid() -> None:
    told = inside(
        """
tree = ContainerTree()
ours = sleeper()
tree.attach(ours.pid)
before = tree.main == ours.pid and len(tree.members()) == 1
time.sleep(0.05)
ours.kill(); ours.wait()
foreign = sleeper(ours.pid)
tree.kill_all(0.2)
time.sleep(0.1)
print(json.dumps([before, tree.main, len(tree.members()), foreign.poll()]))
"""
    )
    assert told == [True, None, 0, None]


def test_memory_of_a_process_with_a_dead_ones_pid_is_not_the_runs(fake_nvml: FakeNvml) -> None:
    gpu = f"gpu 0 GPU-0 {H100}"
    fake_nvml.set(gpu.replace(" 20000 ", " 100 "))
    told = inside(
        f"""
state = Path(os.environ["NVML_STUB"])
def put(*lines):
    state.write_text("\\n".join([{gpu!r}, *lines]) + "\\n")
with Nvml() as nvml:
    ours = sleeper()
    members = [psutil.Process(), psutil.Process(ours.pid)]
    sampler = NvmlSampler(nvml, [0], lambda: members, take_baseline(nvml, [0]))
    put(f"compute 0 {{os.getpid()}} 100", f"compute 0 {{ours.pid}} 900")
    figures = [sampler.sample().own_bytes]
    time.sleep(0.05)
    ours.kill(); ours.wait()
    figures.append(sampler.sample().own_bytes)  # its memory is still on the card
    foreign = sleeper(ours.pid)
    put(f"compute 0 {{os.getpid()}} 100", f"compute 0 {{foreign.pid}} 60000")
    figures.append(sampler.sample().own_bytes)  # also while the list of members is an old one
    members.pop()
    figures.append(sampler.sample().own_bytes)
    seen = {{pid: each for pid, each in sampler.seen.items() if pid == foreign.pid}}
    gone = confirm_left_device(nvml, seen, 0.1, [0])
    foreign.kill(); foreign.wait()
    figures.append(sampler.sample().own_bytes)  # what that one left is not the run's, either
print(json.dumps([[size >> 20 for size in figures], gone]))
""",
        fake_nvml,
    )
    assert told == [[1000, 1000, 100, 100, 100], []]
