"""The CPU time of `runner monitor` and of the guard's samplers, over wall time, on the NVML stub.

    .venv/bin/python benchmarks/monitor_cost.py [SECONDS]

Each is measured at 1 Hz and at 10 Hz for SECONDS (default 20), with one card and with eight, two
processes on each: the monitor as it samples and reports each 5 s without drawing, in a folder with
200 runs that have ended and one that lives; NvmlSampler, and with one card also HostSampler, with
a run of THREADS threads in PROCESSES processes for members, as the supervisor has them. NVML
answers from tests/testbed/nvml_stub.c, so this is the Python side and what the stub adds (a stat of
its state file a call), not a driver. Exit code 1 where the monitor or NvmlSampler misses its goal
with one card: at 1 Hz 0.1 % of a core, at 10 Hz 1 %.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.machine.health import XidWatch
    from runner.machine.nvml import Nvml

REPOSITORY = Path(__file__).resolve().parents[1]
GOALS_PERCENT = {1: 0.1, 10: 1.0}
CARD = "81559 20000 87 61 452000 0 NVIDIA H100 80GB HBM3"
ENDED_RUNS = 200
PROCESSES, THREADS = 4, 64
WORKER = """
import os, threading, time
for _ in range({threads} - 1):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print(flush=True)
time.sleep(1000)
"""


def cpu_percent(sample: Callable[[int], None], rate_hz: int, seconds: float) -> float:
    """CPU time of this process, user and system, over wall time, in percent of a core."""
    for count in range(3):  # imports, caches
        sample(count)
    started, before = time.monotonic(), time.process_time()
    count = 0
    while time.monotonic() - started < seconds:
        count += 1
        sample(count)
        time.sleep(max(0.0, started + count / rate_hz - time.monotonic()))
    return 100 * (time.process_time() - before) / (time.monotonic() - started)


def lay_runs(root: Path, budget_bytes: int) -> None:
    """Folders of runs that have ended, and one whose supervisor is this process."""
    from runner.common import processes as liveness

    for number in range(ENDED_RUNS):
        folder = root / f"job-{number % 7}" / f"20250101-{number:06d}-abcdef0"
        folder.mkdir(parents=True)
        (folder / "termination.json").write_text("{}")
    live = root / "live" / "20250101-000000-abcdef0"
    (live / "engine").mkdir(parents=True)
    (live / "plan.yaml").write_text("{}")
    record = {"pid": os.getpid(), "start_ticks": liveness.start_ticks(os.getpid())}
    (live / "supervisor.json").write_text(json.dumps(record))
    sample = {"time_unix_seconds": time.time(), "own_bytes": budget_bytes // 2}
    (live / "memory.jsonl").write_text(json.dumps(sample) + "\n")


@contextlib.contextmanager
def training() -> Iterator[list[int]]:
    """The pids of a run's processes, which are children of this one and do nothing."""
    command = [sys.executable, "-c", WORKER.format(threads=THREADS // PROCESSES)]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(PROCESSES):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # its threads are there
        yield [process.pid for process in processes]


def hardware(cards: int, pids: list[int]) -> list[str]:
    """Lines for the stub's state: each card has two of the processes on it."""
    lines = ["driver 570.124.06"]
    for index in range(cards):
        lines += [f"gpu {index} GPU-{index} {CARD}", f"power_limit {index} 700000"]
        lines += [f"compute {index} {pid} 9000" for pid in pids[:2]]
    return lines


def measure(cards: int, seconds: float) -> bool:
    """Run in a process that has the stub for its NVML: print the figures; whether goals are met."""
    from runner.machine.health import XidWatch
    from runner.machine.nvml import Nvml

    met = True
    with tempfile.TemporaryDirectory() as folder, training() as pids:
        Path(os.environ["NVML_STUB"]).write_text("\n".join(hardware(cards, pids)) + "\n")
        lay_runs(Path(folder), 24 << 30)
        time.sleep(3)  # the stub reads a file again that is new
        with Nvml() as nvml, XidWatch(nvml) as xids:
            for rate in GOALS_PERCENT:
                for name, sample in samplers(nvml, xids, Path(folder), cards, rate).items():
                    percent = cpu_percent(sample, rate, seconds)
                    goal = ""
                    if cards == 1 and name != "HostSampler":  # whose PSS costs by the process
                        goal = f"  (goal {GOALS_PERCENT[rate]} %)"
                        met = met and percent <= GOALS_PERCENT[rate]
                    print(
                        f"{name:<12} {cards} cards  {rate:>2} Hz  {percent:.3f} % of a core{goal}"
                    )
    return met


def samplers(
    nvml: Nvml, xids: XidWatch, folder: Path, cards: int, rate_hz: int
) -> dict[str, Callable[[int], object]]:
    """What is measured, by name; each is given how often it was called."""
    from runner.machine.health import read_health
    from runner.machine.host_sampler import HostSampler
    from runner.machine.nvml_sampler import NvmlSampler
    from runner.machine.process_tree import ProcessTree
    from runner.report.monitor import runs as monitor_runs
    from runner.report.monitor.watch import Watch
    from runner.supervisor.samplers import SEARCH_SECONDS

    planned = monitor_runs.PlannedMemory("cuda", (0,), (), 24 << 30)
    monitor_runs.planned_memory = lambda _: planned  # reading a plan happens once a run
    watch = Watch(
        nvml,
        monitor_runs.LiveRuns(folder),
        interval_seconds=5,
        health=partial(read_health, nvml),
        xids=xids.seen,
    )

    def look(count: int) -> None:
        watch.sample()
        if count % (5 * rate_hz) == 0:
            watch.report()

    tree = ProcessTree()
    members = partial(tree.watched, SEARCH_SECONDS)
    guard = NvmlSampler(nvml, range(cards), members, {}, member=tree.member)
    found: dict[str, Callable[[int], object]] = {
        "monitor": look,
        "NvmlSampler": lambda _: guard.sample(),
    }
    if cards == 1:
        host = HostSampler(ProcessTree().watched)
        found["HostSampler"] = lambda _: host.sample()
    return found


def main() -> int:
    """Build the stub, then measure in a process for each number of cards."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    sys.path.insert(0, str(REPOSITORY))
    from tests.testbed import FakeNvml, build_nvml

    met = True
    with tempfile.TemporaryDirectory() as folder:
        fake = FakeNvml(build_nvml(Path(folder)), Path(folder) / "nvml.state")
        for cards in (1, 8):
            command = [sys.executable, __file__, "--measure", str(cards), str(seconds)]
            met = subprocess.run(command, env=fake.environment()).returncode == 0 and met
    return 0 if met else 1


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "--measure":
        sys.exit(0 if measure(int(sys.argv[2]), float(sys.argv[3])) else 1)
    sys.exit(main())
