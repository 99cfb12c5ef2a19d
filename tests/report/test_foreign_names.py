"""Names of processes, GPUs and runs in all that the monitor prints: shown, never sent."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from runner.common import terminal
from runner.machine.readings import MigDevice
from runner.report.monitor import csv as monitor_csv
from runner.report.monitor import metrics as monitor_metrics
from runner.report.monitor.snapshot import (
    CardShare,
    DeviceView,
    HostView,
    ProcessView,
    RunView,
    Snapshot,
)
from runner.report.monitor.view import render
from tests.security.hostile_runs import EVIL, unfit

PROCESS = ProcessView(1, 1 << 30, f"python{EVIL}", f"run{EVIL}")
RUN = RunView(
    f"run{EVIL}", "cuda", (0,), (f"GPU-0{EVIL}",), 1 << 33, 1 << 32, 1 << 32, EVIL, False, False
)


def device(**more: Any) -> DeviceView:
    known: dict[str, Any] = dict.fromkeys(DeviceView.__slots__)
    known |= {
        "index": 0,
        "uuid": f"GPU-0{EVIL}",
        "name": f"H200{EVIL}",
        "total_bytes": 1 << 37,
        "used_bytes": 1 << 33,
        "used_max_bytes": 1 << 33,
        "clock_limits": (f"power cap{EVIL}",),
        "xids": (79,),
        "mig_mode": True,
        "mig_devices": (MigDevice(0, f"MIG-1{EVIL}", f"1g.10gb{EVIL}", 1 << 33, 1 << 30),),
        "lost": False,
        "runs": (CardShare(f"run{EVIL}", 1 << 33, 1 << 32, 1 << 32),),
        "processes": (PROCESS,) * 3,
    }
    return DeviceView(**{**known, **more})


HOST = HostView(1 << 35, 1 << 34, 1 << 34, (1.0, 1.0, 1.0), (5.0,), (PROCESS,), (PROCESS,))
SNAPSHOTS = [
    Snapshot(1.0, 1, f"570{EVIL}", (device(),), None, (RUN,), None),
    Snapshot(1.0, 1, None, (device(failure=f"NVML{EVIL}", name=None),), None, (RUN,), None),
    Snapshot(1.0, 1, f"570{EVIL}", (device(processes=None, lost=True),), None, (), f"no{EVIL}"),
    Snapshot(1.0, 1, None, (), HOST, (RUN,), f"note{EVIL}"),
]


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (200, 60)])
def test_the_view_draws_none_that_a_terminal_obeys(
    snapshot: Snapshot, width: int, height: int
) -> None:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(render(snapshot))
    options = console.options.update(width=width, height=height)
    lines = console.render_lines(render(snapshot), options, pad=False)
    drawn = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert unfit(drawn) == []
    assert unfit(console.file.getvalue()) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_csv_json_and_metrics_hold_none(
    snapshot: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    for line in monitor_csv.rows(snapshot):
        assert unfit(line) == []
    terminal.put_json(snapshot.to_record())
    told = capsys.readouterr().out
    assert unfit(told) == []
    text = prometheus.generate_latest(monitor_metrics.registry(lambda: snapshot)).decode()
    assert unfit(text) == []
