"""report.monitor_view on the NVML stub and on this host."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import psutil
from rich.console import Console

from runner.guard.nvml import NvmlFailed
from runner.guard.records import DeviceReading
from runner.report.monitor_view import Snapshot, gather, render
from tests.testbed import H100, REPOSITORY, FakeNvml

MIB = 1024**2


def drawn(snapshot: Snapshot, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(snapshot))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_cards_with_their_processes_and_runs(fake_nvml: FakeNvml) -> None:
    fake_nvml.set(
        f"gpu 0 GPU-0 {H100}", "gpu 1 GPU-1 - - - - - 0 NVIDIA GB10", f"gpu 2 GPU-2 {H100}",
        "code DeviceGetMemoryInfo 0",
    )  # fmt: skip
    told = fake_nvml.probe(
        "import io, os, pathlib, subprocess, sys\n"
        "from rich.console import Console\n"
        "from runner.report.monitor_view import gather, render\n"
        "child = subprocess.Popen(['sleep', '30'])\n"
        "state = pathlib.Path(os.environ['NVML_STUB'])\n"
        "state.write_text(state.read_text().replace('452000 0', '452000 0', 1)"
        " + f'compute 0 {child.pid} 19997\\ncompute 0 4194303 -\\n')\n"
        "with Nvml() as nvml:\n"
        "    snapshot = gather(nvml, {os.getpid(): 'demo/0312'})\n"
        "child.kill()\n"
        "console = Console(file=io.StringIO(), width=110)\n"
        "console.print(render(snapshot))\n"
        "tell([snapshot.to_record(), console.file.getvalue(), child.pid])\n"
    )
    record, text, child = told
    assert record["schema_version"] == 1
    assert record["host"] is None
    assert record["driver_version"] == "570.124.06"
    first, second, _ = record["devices"]
    assert first["used_bytes"] == 20000 * MIB
    assert first["processes"] == [
        {"pid": child, "used_bytes": 19997 * MIB, "command": "sleep", "run": "demo/0312"},
        {"pid": 4194303, "used_bytes": None, "command": None, "run": None},
    ]
    assert second["used_bytes"] is None
    for words in ("NVIDIA H100 80GB HBM3", "19.53 GiB / 79.65 GiB", "87 %", "452 W", "61 °C"):
        assert words in text
    assert "unknown / unknown" in text
    assert "demo/0312" in text


class Cards:
    """One card that is lost and one that does not answer."""

    def driver_version(self) -> str | None:
        return None

    def devices(self) -> list[tuple[int, str | None]]:
        return [(0, "GPU-0"), (1, "GPU-1")]

    def read(self, index: int) -> DeviceReading:
        if index:
            raise NvmlFailed("GPU 1 memory: Unknown Error")
        return DeviceReading(
            0, "GPU-0", "X", None, None, None, None, None, None, None, None, True, None
        )


class NoCards(Cards):
    def devices(self) -> list[tuple[int, str | None]]:
        raise NvmlFailed("device count: Unknown Error")


def test_failing_cards_are_shown_as_such() -> None:
    snapshot = gather(Cards(), {})
    text = drawn(snapshot)
    assert "the GPU is lost" in text
    assert "Unknown Error" in text
    assert snapshot.devices[1].used_bytes is None
    json.dumps(snapshot.to_record(), allow_nan=False)


def test_where_nvml_fails_the_host_is_shown_and_why() -> None:
    snapshot = gather(NoCards(), {})
    assert snapshot.host is not None
    assert "Unknown Error" in drawn(snapshot)


def test_a_host_without_a_gpu() -> None:
    with subprocess.Popen(["sleep", "30"]) as child:
        try:
            snapshot = gather(None, {os.getpid(): "demo/0312"})
        finally:
            child.kill()
    host = snapshot.host
    assert host is not None and snapshot.devices == () and snapshot.note is None
    assert host.total_bytes == psutil.virtual_memory().total
    assert len(host.cpu_percent) == psutil.cpu_count()
    assert {os.getpid(), child.pid} <= {view.pid for view in host.run_processes}
    sizes = [view.used_bytes or 0 for view in host.biggest]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) <= 5
    json.dumps(snapshot.to_record(), allow_nan=False)
    text = drawn(snapshot, width=80)
    for words in ("memory", "available", "load", "cores", "biggest", "demo/0312"):
        assert words in text


def test_rich_is_imported_only_to_draw() -> None:
    program = (
        "import sys\n"
        "from runner.report.monitor_view import gather\n"
        "gather(None, {}).to_record()\n"
        "print('rich' in sys.modules, 'pynvml' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.split() == ["False", "False"]
