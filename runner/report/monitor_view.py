"""What `runner monitor` shows: the cards, or the host where there are none, as views.

May import the stdlib, psutil, runner.units and the guard's records and nvml; rich only inside
`render`. `gather` reads, `Snapshot.to_record` is the JSON of it, `render` draws it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from runner.guard.nvml import NvmlFailed
from runner.guard.records import DeviceReading, DeviceSource
from runner.units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SNAPSHOT_SCHEMA_VERSION = 1
BIGGEST_PROCESSES = 5
# A core's use is a figure over a time: this is what the first reading takes.
CPU_WINDOW_SECONDS = 0.1
_ALERT_FRACTION = 0.95
_WARN_FRACTION = 0.85


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A process with its memory: on the card (NVML), or on the host (resident set)."""

    pid: int
    used_bytes: int | None
    command: str | None  # the command's name; None where the process can't be seen from here
    run: str | None  # the run that it belongs to


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One card. None is unknown; `failure` says why, where nothing could be read."""

    index: int
    uuid: str | None
    name: str | None
    total_bytes: int | None
    used_bytes: int | None
    free_bytes: int | None
    reserved_bytes: int | None
    memory_api: int | None
    utilization_percent: int | None
    power_watts: float | None
    temperature_celsius: int | None
    lost: bool
    processes: tuple[ProcessView, ...] | None  # None: the list can't be read
    failure: str | None


@dataclass(frozen=True, slots=True)
class HostView:
    """A machine without a GPU."""

    total_bytes: int
    available_bytes: int
    load: tuple[float, float, float]  # over 1, 5 and 15 minutes
    cpu_percent: tuple[float, ...]  # of each core, since the last reading or over 0.1 s
    biggest: tuple[ProcessView, ...]  # by resident set, largest first
    run_processes: tuple[ProcessView, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The machine at one moment: its cards, or else the host."""

    time_unix_seconds: float
    driver_version: str | None
    devices: tuple[DeviceView, ...]
    host: HostView | None  # None where there are cards
    note: str | None  # why no card is shown, where NVML was there to ask

    def to_record(self) -> dict[str, Any]:
        """The snapshot, ready for JSON."""
        return {"schema_version": SNAPSHOT_SCHEMA_VERSION, **asdict(self)}


class MonitorSource(DeviceSource, Protocol):
    """A DeviceSource that also knows its driver: nvml.Nvml."""

    def driver_version(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """What psutil saw of a process."""

    parent: int | None
    command: str | None
    resident_bytes: int | None


def gather(nvml: MonitorSource | None, run_pids: Mapping[int, str]) -> Snapshot:
    """Read the cards, or the host where `nvml` is None or has no card.

    `run_pids` names runs by the pid of any process of theirs; its descendants belong to the same
    run. A card that can't be read is shown with its failure. Takes some milliseconds, and 0.1 s
    for the cores of a host.
    """
    table = _process_table()
    devices: tuple[DeviceView, ...] = ()
    driver = note = None
    if nvml is not None:
        try:
            driver = nvml.driver_version()
            devices = tuple(
                _device(nvml, index, uuid, table, run_pids) for index, uuid in nvml.devices()
            )
            note = None if devices else "NVML lists no GPU"
        except NvmlFailed as error:
            note = f"NVML can't be read: {error}"
    return Snapshot(
        time_unix_seconds=time.time(),
        driver_version=driver,
        devices=devices,
        host=None if devices else _host(table, run_pids),
        note=note,
    )


def _process_table() -> dict[int, _Seen]:
    """Every process that can be seen from here, by pid."""
    table = {}
    for process in psutil.process_iter(["ppid", "name", "memory_info"]):
        memory = process.info["memory_info"]
        table[process.pid] = _Seen(
            parent=process.info["ppid"],
            command=process.info["name"],
            resident_bytes=None if memory is None else memory.rss,
        )
    return table


def _run_of(pid: int, table: Mapping[int, _Seen], run_pids: Mapping[int, str]) -> str | None:
    """The run of a process, or of its nearest ancestor that has one."""
    visited: set[int] = set()
    current: int | None = pid
    while current is not None and current not in visited:
        if current in run_pids:
            return run_pids[current]
        visited.add(current)
        seen = table.get(current)
        current = None if seen is None else seen.parent
    return None


def _device(
    nvml: DeviceSource,
    index: int,
    uuid: str | None,
    table: Mapping[int, _Seen],
    run_pids: Mapping[int, str],
) -> DeviceView:
    """One card's view; never raises for what the driver does not answer."""
    try:
        reading = nvml.read(index)
        failure = "the GPU is lost; it needs a reset" if reading.lost else None
    except NvmlFailed as error:
        reading = DeviceReading(
            index, uuid, None, None, None, None, None, None, None, None, None, False, None
        )
        failure = str(error)
    processes = None
    if reading.processes is not None:
        processes = tuple(
            ProcessView(
                pid=process.pid,
                used_bytes=process.used_bytes,
                command=table[process.pid].command if process.pid in table else None,
                run=_run_of(process.pid, table, run_pids),
            )
            for process in sorted(reading.processes, key=lambda one: -(one.used_bytes or 0))
        )
    return DeviceView(
        index=reading.index,
        uuid=reading.uuid,
        name=reading.name,
        total_bytes=reading.total_bytes,
        used_bytes=reading.used_bytes,
        free_bytes=reading.free_bytes,
        reserved_bytes=reading.reserved_bytes,
        memory_api=reading.memory_api,
        utilization_percent=reading.utilization_percent,
        power_watts=reading.power_watts,
        temperature_celsius=reading.temperature_celsius,
        lost=reading.lost,
        processes=processes,
        failure=failure,
    )


def _host(table: Mapping[int, _Seen], run_pids: Mapping[int, str]) -> HostView:
    """The host's view."""
    views = [
        ProcessView(pid, seen.resident_bytes, seen.command, _run_of(pid, table, run_pids))
        for pid, seen in table.items()
    ]
    views.sort(key=lambda view: (-(view.used_bytes or 0), view.pid))
    memory = psutil.virtual_memory()
    return HostView(
        total_bytes=memory.total,
        available_bytes=memory.available,
        load=os.getloadavg(),
        cpu_percent=tuple(psutil.cpu_percent(interval=CPU_WINDOW_SECONDS, percpu=True)),
        biggest=tuple(views[:BIGGEST_PROCESSES]),
        run_processes=tuple(view for view in views if view.run is not None),
    )


# Drawing ---------------------------------------------------------------------------------------


def render(snapshot: Snapshot) -> RenderableType:
    """The snapshot as one rich renderable, for a console or a live display."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if snapshot.note:
        parts.append(Text(snapshot.note, style="yellow"))
    if snapshot.devices:
        parts.append(_draw_devices(snapshot.devices))
        shown = [(device, view) for device in snapshot.devices for view in device.processes or ()]
        if shown:
            parts.append(
                _draw_processes(
                    "on the GPUs", [(str(device.index), view) for device, view in shown]
                )
            )
        blind = [str(device.index) for device in snapshot.devices if device.processes is None]
        if blind:
            parts.append(Text(f"processes unknown on GPU {', '.join(blind)}", style="dim"))
    if snapshot.host is not None:
        parts.extend(_draw_host(snapshot.host))
    return Group(*parts)


def _draw_devices(devices: tuple[DeviceView, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("GPU", no_wrap=True)
    table.add_column("memory", min_width=12, no_wrap=True)
    table.add_column("used / total", no_wrap=True)
    for heading in ("util", "power", "temp"):
        table.add_column(heading, justify="right", no_wrap=True)
    for device in devices:
        title = f"{device.index} {device.name or device.uuid or ''}".rstrip()
        if device.failure:
            table.add_row(title, Text(device.failure, style="bold red"), "", "", "", "")
            continue
        table.add_row(
            title,
            _bar(device.used_bytes, device.total_bytes),
            f"{format_bytes(device.used_bytes)} / {format_bytes(device.total_bytes)}",
            _figure(device.utilization_percent, " %"),
            _figure(device.power_watts, " W"),
            _figure(device.temperature_celsius, " °C"),
        )
    return table


def _draw_host(host: HostView) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    used = host.total_bytes - host.available_bytes
    figures = Table(box=None, pad_edge=False, show_header=False)
    figures.add_column(style="dim")
    figures.add_column(min_width=12)
    figures.add_column()
    figures.add_row(
        "memory",
        _bar(used, host.total_bytes),
        f"{format_bytes(used)} / {format_bytes(host.total_bytes)}"
        f" · {format_bytes(host.available_bytes)} available",
    )
    figures.add_row("load", " ".join(f"{load:.2f}" for load in host.load), "over 1, 5 and 15 min")
    parts: list[RenderableType] = [figures]
    cores = "  ".join(f"{percent:.0f}%" for percent in host.cpu_percent)
    parts.append(Text.assemble(("cores   ", "dim"), cores))
    if host.run_processes:
        parts.append(_draw_processes("of runs", [("", view) for view in host.run_processes]))
    parts.append(_draw_processes("biggest", [("", view) for view in host.biggest]))
    return parts


def _draw_processes(title: str, rows: list[tuple[str, ProcessView]]) -> Table:
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        header_style="dim",
        title=f"processes {title}",
        title_justify="left",
        title_style="dim",
    )
    on_cards = any(where for where, _ in rows)
    if on_cards:
        table.add_column("GPU")
    table.add_column("pid", justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("command")
    table.add_column("run")
    for where, view in rows:
        cells = [str(view.pid), format_bytes(view.used_bytes), view.command or "?", view.run or ""]
        table.add_row(*([where, *cells] if on_cards else cells))
    return table


def _bar(used_bytes: int | None, total_bytes: int | None) -> RenderableType:
    """A bar of what is used; nothing where it is unknown."""
    from rich.progress_bar import ProgressBar

    if used_bytes is None or not total_bytes:
        return ""
    fraction = used_bytes / total_bytes
    style = "green"
    if fraction >= _WARN_FRACTION:
        style = "red" if fraction >= _ALERT_FRACTION else "yellow"
    return ProgressBar(
        total=total_bytes,
        completed=used_bytes,
        width=20,
        complete_style=style,
        finished_style=style,
    )


def _figure(value: float | None, unit: str) -> str:
    return "?" if value is None else f"{value:.0f}{unit}"
