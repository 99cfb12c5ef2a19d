"""`runner monitor --csv`: a line for each GPU (or the host) and report, under stable names. Pure.

Imports the stdlib, runner.common.terminal and the monitor's snapshot. An empty cell is an unknown
value; columns may be added at the end, none changes its meaning.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from runner.common.terminal import clean_line
from runner.report.monitor.snapshot import DeviceView, HostView, Snapshot

COLUMNS = (
    "time_unix_seconds",
    "gpu",  # NVML's index; empty: the host, where there is no GPU
    "uuid",
    "name",
    "memory_used_bytes",
    "memory_used_max_bytes",  # since the line before
    "memory_free_bytes",
    "memory_total_bytes",
    "memory_reserved_bytes",
    "utilization_percent",
    "power_watts",
    "power_limit_watts",
    "temperature_celsius",
    "clock_limits",  # in words, ";" between; "none" where nothing holds the clocks back
    "ecc_corrected_errors",
    "ecc_uncorrected_errors",
    "xid_events",  # how many since the monitor began
    "mig_mode",
    "lost",
    "runs",  # names, ";" between
    "runs_memory_bytes",
    "runs_budget_bytes",
    "failure",
)

Cell = str | int | float | None


def header() -> str:
    """The first line."""
    return _line(COLUMNS)


def rows(snapshot: Snapshot) -> list[str]:
    """The lines of one report, without line ends."""
    cells = [_card(device) for device in snapshot.devices]
    if snapshot.host is not None:
        cells.append(_host(snapshot, snapshot.host))
    at = f"{snapshot.time_unix_seconds:.3f}"
    return [_line((at, *(one.get(name) for name in COLUMNS[1:]))) for one in cells]


def _card(device: DeviceView) -> dict[str, Cell]:
    limits = device.clock_limits
    return {
        "gpu": device.index,
        "uuid": device.uuid,
        "name": device.name,
        "memory_used_bytes": device.used_bytes,
        "memory_used_max_bytes": device.used_max_bytes,
        "memory_free_bytes": device.free_bytes,
        "memory_total_bytes": device.total_bytes,
        "memory_reserved_bytes": device.reserved_bytes,
        "utilization_percent": device.utilization_percent,
        "power_watts": device.power_watts,
        "power_limit_watts": device.power_limit_watts,
        "temperature_celsius": device.temperature_celsius,
        "clock_limits": None if limits is None else ";".join(limits) or "none",
        "ecc_corrected_errors": device.ecc_corrected,
        "ecc_uncorrected_errors": device.ecc_uncorrected,
        "xid_events": None if device.xids is None else len(device.xids),
        "mig_mode": None if device.mig_mode is None else int(device.mig_mode),
        "lost": int(device.lost),
        "runs": ";".join(run.run for run in device.runs),
        "runs_memory_bytes": _sum(run.own_bytes for run in device.runs),
        "runs_budget_bytes": _sum(run.budget_bytes for run in device.runs),
        "failure": device.failure,
    }


def _host(snapshot: Snapshot, host: HostView) -> dict[str, Cell]:
    runs = [run for run in snapshot.runs if not run.ended]
    return {
        "memory_used_bytes": host.used_bytes,
        "memory_used_max_bytes": host.used_max_bytes,
        "memory_free_bytes": host.available_bytes,
        "memory_total_bytes": host.total_bytes,
        "utilization_percent": round(sum(host.cpu_percent) / max(1, len(host.cpu_percent)), 1),
        "runs": ";".join(run.name for run in runs),
        "runs_memory_bytes": _sum(run.own_bytes for run in runs),
        "runs_budget_bytes": _sum(run.budget_bytes for run in runs),
        "failure": snapshot.note,
    }


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum where every part is known; None where one is not, or there is none."""
    parts = list(values)
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def _line(cells: Iterable[Cell]) -> str:
    out = io.StringIO()
    shown = ["" if cell is None else clean_line(str(cell)) for cell in cells]
    csv.writer(out, lineterminator="").writerow(shown)
    return out.getvalue()
