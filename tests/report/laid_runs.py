"""Run folders as a live run has them, with real plans, laid by a test instead of trained."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.common import processes as liveness
from runner.engines.load import load_job
from runner.engines.render import render
from runner.engines.sft.facts import Facts
from runner.engines.sft.resolve import make_plan
from runner.plans.facts import Gpu
from runner.plans.sources import DataSource, ModelSource
from runner.runs.create import create_run
from runner.runs.folder import RunFolder

GIB = 1024**3


def lay_run(
    root: Path, *, budget: str | None = "24GiB", device: str = "cuda", cards: int = 1
) -> RunFolder:
    """A run of demo-identity that has not started: on the first `cards` of two, or the CPU."""
    kind = "gpu_memory" if device == "cuda" else "host_memory"
    sets = [f"budget.{kind}={budget or 'null'}"]
    if budget is None:  # the other device's alone can't be enforced
        sets = ["budget.gpu_memory=null", "budget.host_memory=null"]
    sets += [f"launch.device={device}", f"launch.num_processes={cards}"]
    rows = DataSource("file", root / "rows.jsonl", None, None, "0" * 64, 1, True)
    facts = Facts(
        python=sys.executable,
        cores=2,
        torch_version="2.13.0",
        gpus=tuple(Gpu(i, f"GPU-{i}", "NVIDIA H100", 81559 << 20, 9.0) for i in range(2)),
        gpu_absence="",
        model=ModelSource("hub", "some/model", None, None, True),
        rows={"data.train": rows},
        cache=root,
    )
    plan = make_plan(load_job("demo-identity", sets), facts)
    assert plan.launch.gpu_uuids == [f"GPU-{i}" for i in range(cards if device == "cuda" else 0)]
    return create_run(root, plan.job, plan.short_hash, plan.variant, render(plan))


def lives(folder: RunFolder, pid: int) -> None:
    """Say that this process supervises the run."""
    record = {"pid": pid, "start_ticks": liveness.start_ticks(pid)}
    folder.supervisor.write_text(json.dumps(record))


def measured(
    folder: RunFolder, own: Iterable[int | None], *, kind: str = "gpu", **more: Any
) -> None:
    """Append the guard's samples, one a second, the last one now."""
    values = list(own)
    now = time.time()
    with folder.memory.open("a") as stream:
        for age, value in zip(range(len(values) - 1, -1, -1), values, strict=True):
            record = {
                "schema_version": 1,
                "time_unix_seconds": now - age,
                "kind": kind,
                "own_bytes": value,
                "attribution": "nvml_pid" if kind == "gpu" else "host_process_tree",
                "devices": [],
                **more,
            }
            stream.write(json.dumps(record) + "\n")


@contextmanager
def guarded(folder: RunFolder, own: int) -> Iterator[None]:
    """For the time of the block a sample a second, as a guard writes them."""
    over = threading.Event()

    def write() -> None:
        while not over.wait(1.0):
            measured(folder, [own])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


@contextmanager
def sleeping() -> Iterator[int]:
    """The pid of a process that does nothing, for the time of the block."""
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()
