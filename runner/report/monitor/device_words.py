"""What a GPU says of itself, in words, colours and places on its bar. Pure.

May import the stdlib and the monitor's records.
"""

from __future__ import annotations

from runner.report.monitor.snapshot import DeviceView

# Clock limits that mean that something is wrong, not only that the GPU is busy.
_BAD_LIMITS = ("hardware", "thermal", "brake")


def card_figures(device: DeviceView) -> list[str]:
    """Utilization, power and temperature, as a GPU's first line has them."""

    def figure(value: float | None) -> str:
        return "?" if value is None else f"{value:.0f}"

    limit = device.power_limit_watts
    power = figure(device.power_watts) + (f" / {limit:.0f}" if limit is not None else "")
    return [
        f"{figure(device.utilization_percent)} %",
        f"{power} W",
        f"{figure(device.temperature_celsius)} °C",
    ]


def fullest_share(device: DeviceView) -> float | None:
    """What a GPU's colour says: the fullest budget on it, else the GPU's own use."""
    shares = [
        run.own_bytes / run.budget_bytes
        for run in device.runs
        if run.own_bytes is not None and run.budget_bytes
    ]
    if shares:
        return max(shares)
    if device.used_bytes is None or not device.total_bytes:
        return None
    return device.used_bytes / device.total_bytes


def budget_marks(device: DeviceView) -> list[float]:
    """Where in a GPU's bar the budgets on it end, one on top of the other."""
    if not device.total_bytes:
        return []
    marks, reach = [], 0
    for run in device.runs:
        if run.budget_bytes is not None:
            reach += run.budget_bytes
            marks.append(reach / device.total_bytes)
    return marks


def health_words(device: DeviceView) -> list[tuple[str, str]]:
    """Clocks, ECC and XID in words, with a style each."""
    limits = device.clock_limits
    if limits is None:
        parts = [("clocks ?", "dim")]
    else:
        held = [limit for limit in limits if limit != "idle"]
        bad = any(word in limit for limit in held for word in _BAD_LIMITS)
        if held:
            parts = [(f"clocks held by: {', '.join(held)}", "bold red" if bad else "yellow")]
        else:
            parts = [("clocks idle" if limits else "clocks free", "dim")]
    corrected, uncorrected = device.ecc_corrected, device.ecc_uncorrected
    if corrected is None and uncorrected is None:
        parts.append(("ECC ?", "dim"))
    else:
        told = [
            f"{'?' if count is None else count} {kind}"
            for count, kind in ((corrected, "corrected"), (uncorrected, "uncorrected"))
        ]
        style = "bold red" if uncorrected else "yellow" if corrected else "dim"
        parts.append((f"ECC {', '.join(told)}", style))
    if device.xids is None:
        parts.append(("XID ?", "dim"))
    elif device.xids:
        last = ", ".join(str(xid) for xid in device.xids[-5:])
        more = "" if len(device.xids) <= 5 else f" ({len(device.xids)} in all)"
        parts.append((f"XID {last}{more}", "bold red"))
    else:
        parts.append(("no XID", "dim"))
    return parts
