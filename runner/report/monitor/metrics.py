"""`runner monitor --prometheus` and `--textfile`: a Snapshot as metrics, through prometheus-client.

May import the stdlib, runner.common, the monitor's snapshot and runner.machine.health; the optional
package prometheus-client inside functions only. What is unknown has no sample at all: neither 0 nor
NaN stands in for it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.common import durable
from runner.common.errors import UsageError
from runner.common.terminal import clean_line
from runner.machine.health import CLOCK_LIMITS
from runner.report.monitor.snapshot import DeviceView, Snapshot

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

INSTALL = "pip install prometheus-client"
DEFAULT_ADDRESS = "127.0.0.1"
_CARD = ("gpu", "uuid", "name")

# name -> (labels, help). Counters end in _total; all else are gauges.
FAMILIES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "runner_monitor_report_time_seconds": ((), "Unix time of the report that these figures are of"),
    "runner_gpu_memory_used_bytes": (_CARD, "Memory in use on the GPU"),
    "runner_gpu_memory_used_max_bytes": (_CARD, "The largest sample since the last report"),
    "runner_gpu_memory_free_bytes": (_CARD, "Memory that can be allocated"),
    "runner_gpu_memory_total_bytes": (_CARD, "The GPU's memory"),
    "runner_gpu_memory_reserved_bytes": (_CARD, "Memory that the driver keeps for itself"),
    "runner_gpu_utilization_ratio": (_CARD, "Share of time in which a kernel ran, 0 to 1"),
    "runner_gpu_power_watts": (_CARD, "Power drawn"),
    "runner_gpu_power_limit_watts": (_CARD, "Power that the driver holds the GPU to"),
    "runner_gpu_temperature_celsius": (_CARD, "Temperature of the GPU"),
    "runner_gpu_lost": (_CARD, "1 where the GPU is lost or needs a reset"),
    "runner_gpu_clocks_limited": ((*_CARD, "reason"), "1 where this holds the clocks back"),
    "runner_gpu_ecc_errors_total": ((*_CARD, "kind"), "ECC errors since the driver was loaded"),
    "runner_gpu_xid_events_total": (_CARD, "XID events since the monitor began"),
    "runner_gpu_xid_last": (_CARD, "Number of the last XID event since the monitor began"),
    "runner_gpu_mig_mode": (_CARD, "1 where the GPU is in MIG mode"),
    "runner_gpu_mig_memory_used_bytes": ((*_CARD, "mig"), "Memory in use on a MIG device"),
    "runner_gpu_mig_memory_total_bytes": ((*_CARD, "mig"), "Memory of a MIG device"),
    "runner_gpu_run_memory_bytes": ((*_CARD, "run"), "Memory of a run's processes on the GPU"),
    "runner_host_memory_used_bytes": ((), "Host memory that is not available, without a GPU"),
    "runner_host_memory_used_max_bytes": ((), "The largest sample since the last report"),
    "runner_host_memory_total_bytes": ((), "Host memory"),
    "runner_run_memory_bytes": (("run",), "The run's memory as its guard measures it"),
    "runner_run_memory_max_bytes": (("run",), "The largest of the guard's samples since then"),
    "runner_run_budget_bytes": (("run",), "The run's budget: a GPU's, or of host memory"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One sample: a family's name, its labels' values, the value."""

    name: str
    labels: tuple[str, ...]
    value: float


def metrics_of(snapshot: Snapshot) -> Iterator[Measured]:
    """All samples of a report; what is unknown is left out."""
    yield Measured("runner_monitor_report_time_seconds", (), snapshot.time_unix_seconds)
    for device in snapshot.devices:
        yield from _of_card(device)
    host = snapshot.host
    if host is not None:
        yield Measured("runner_host_memory_used_bytes", (), host.used_bytes)
        yield Measured("runner_host_memory_used_max_bytes", (), host.used_max_bytes)
        yield Measured("runner_host_memory_total_bytes", (), host.total_bytes)
    for run in snapshot.runs:
        if run.ended:
            continue
        for name, value in (
            ("runner_run_memory_bytes", run.own_bytes),
            ("runner_run_memory_max_bytes", run.own_max_bytes),
            ("runner_run_budget_bytes", run.budget_bytes),
        ):
            if value is not None:
                yield Measured(name, (run.name,), value)


def _of_card(device: DeviceView) -> Iterator[Measured]:
    card = (str(device.index), device.uuid or "", device.name or "")
    percent, xids = device.utilization_percent, device.xids
    for name, value in (
        ("memory_used_bytes", device.used_bytes),
        ("memory_used_max_bytes", device.used_max_bytes),
        ("memory_free_bytes", device.free_bytes),
        ("memory_total_bytes", device.total_bytes),
        ("memory_reserved_bytes", device.reserved_bytes),
        ("utilization_ratio", None if percent is None else percent / 100),
        ("power_watts", device.power_watts),
        ("power_limit_watts", device.power_limit_watts),
        ("temperature_celsius", device.temperature_celsius),
        ("lost", float(device.lost)),
        ("xid_events_total", None if xids is None else len(xids)),
        ("xid_last", xids[-1] if xids else None),
        ("mig_mode", None if device.mig_mode is None else float(device.mig_mode)),
    ):
        if value is not None:
            yield Measured(f"runner_gpu_{name}", card, value)
    limits = device.clock_limits
    if limits is not None:
        for reason in (*CLOCK_LIMITS.values(), *(set(limits) - set(CLOCK_LIMITS.values()))):
            yield Measured("runner_gpu_clocks_limited", (*card, reason), float(reason in limits))
    for kind, count in (
        ("corrected", device.ecc_corrected),
        ("uncorrected", device.ecc_uncorrected),
    ):
        if count is not None:
            yield Measured("runner_gpu_ecc_errors_total", (*card, kind), count)
    for part in device.mig_devices or ():
        for name, size in (("used", part.used_bytes), ("total", part.total_bytes)):
            if size is not None:
                labels = (*card, part.uuid or str(part.index))
                yield Measured(f"runner_gpu_mig_memory_{name}_bytes", labels, size)
    for run in device.runs:
        if run.own_bytes is not None:
            yield Measured("runner_gpu_run_memory_bytes", (*card, run.run), run.own_bytes)


def registry(current: Callable[[], Snapshot | None]) -> CollectorRegistry:
    """A prometheus-client registry that tells of `current()` each time it is asked.

    Raises UsageError where the package is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        raise UsageError(
            "metrics need the package prometheus-client, which is not installed", INSTALL
        ) from None
    made = CollectorRegistry(auto_describe=False)
    made.register(_Collector(current))
    return made


class _Collector:
    """What prometheus-client asks for metrics: anything with `collect`."""

    def __init__(self, current: Callable[[], Snapshot | None]) -> None:
        self._current = current

    def collect(self) -> Iterator[Metric]:
        """The metrics of the last report; none before the first."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        snapshot = self._current()
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for one in metrics_of(snapshot) if snapshot is not None else ():
            if one.name not in families:
                labels, meaning = FAMILIES[one.name]
                kind = CounterMetricFamily if one.name.endswith("_total") else GaugeMetricFamily
                families[one.name] = kind(one.name, meaning, labels=labels)
            families[one.name].add_metric(list(map(clean_line, one.labels)), one.value)
        yield from families.values()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where metrics are served."""

    address: str
    port: int  # 0: any free one


def parse_endpoint(text: str) -> Endpoint:
    """PORT, ADDRESS:PORT or [IPV6]:PORT. Raises UsageError."""
    address, colon, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") if colon else DEFAULT_ADDRESS
    try:
        ipaddress.ip_address(address)
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--prometheus {text!r}: expected PORT or ADDRESS:PORT, such as 9400 or 0.0.0.0:9400",
            f"a port is a number up to 65535, an address numeric; PORT alone is {DEFAULT_ADDRESS}",
        ) from None
    return Endpoint(address, int(port))


def serve(endpoint: Endpoint, current: Callable[[], Snapshot | None]) -> str:
    """Serve the metrics from a thread of this process; their URL.

    Raises UsageError where the package is missing, the port is taken or the address not this
    machine's.
    """
    metrics = registry(current)
    from prometheus_client import start_http_server

    try:
        server, _ = start_http_server(endpoint.port, endpoint.address, metrics)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"metrics can't be served at {endpoint.address}:{endpoint.port}: {reason}",
            "choose another port; `ss -ltnp` shows who has this one",
        ) from None
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"http://{host}:{server.server_port}/metrics"


def check_textfile(path: Path) -> None:
    """Raises UsageError where node-exporter would not read `path`, or nothing can lie there."""
    if path.suffix != ".prom":
        raise UsageError(
            f"--textfile {path}: expected a name that ends in .prom",
            "node-exporter's textfile collector reads no other",
        )
    if not path.parent.is_dir():
        raise UsageError(f"--textfile {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--textfile {path}: this is a folder, expected a file's name")


def write_textfile(path: Path, metrics: CollectorRegistry) -> None:
    """Replace `path` by the metrics of now, whole or not at all. Raises UsageError."""
    from prometheus_client import generate_latest

    try:
        durable.write_bytes(path, generate_latest(metrics))
    except OSError as error:
        raise UsageError(f"--textfile {path} can't be written: {error.strerror}") from None
