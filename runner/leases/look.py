"""The cards as they are now, each process on them with its user, its command and its run.

Reads NVML (an open one is given) and /proc, by psutil; decides nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

from runner.folder import RunFolder
from runner.guard.nvml import NvmlFailed
from runner.guard.records import DeviceProcess, DeviceReading, DeviceSource
from runner.guard.sampler import in_container
from runner.leases.book import read_small
from runner.leases.records import Card, CardProcess, Claim
from runner.liveness import start_ticks

DESKTOP_COMMANDS = frozenset(
    (
        *("X", "Xorg", "Xwayland", "gnome-shell", "gnome-session-b", "mutter", "kwin_x11"),
        *("kwin_wayland", "plasmashell", "cinnamon", "xfwm4", "sway", "Hyprland", "weston"),
        *("gdm", "gdm-x-session", "sddm", "lightdm", "gnome-remote-de", "nxnode.bin"),
    )
)
"""Names of what draws a desktop (as in /proc/PID/comm, 15 letters at most)."""


def read_cards(nvml: DeviceSource, claims: Iterable[Claim]) -> tuple[Card, ...]:
    """Every card that NVML lists; one that can't be read counts as lost.

    Raises NvmlFailed where NVML answers nothing at all.
    """
    owners = _Owners(claims)
    cards = []
    for index, uuid in nvml.devices():
        try:
            cards.append(_card(nvml.read(index), uuid or str(index), owners))
        except NvmlFailed:
            cards.append(Card(index, uuid or str(index), "not readable", None, None, lost=True))
    return tuple(cards)


def _card(reading: DeviceReading, uuid: str, owners: _Owners) -> Card:
    return Card(
        index=reading.index,
        uuid=uuid,
        name=reading.name or "unnamed GPU",
        total_bytes=reading.total_bytes,
        free_bytes=reading.free_bytes,
        reserved_bytes=reading.reserved_bytes,
        processes=None
        if reading.processes is None
        else tuple(_process(process, owners) for process in reading.processes),
        lost=reading.lost,
    )


def _process(process: DeviceProcess, owners: _Owners) -> CardProcess:
    user = command = None
    with contextlib.suppress(psutil.Error, KeyError):
        seen = psutil.Process(process.pid)
        command = "".join(c if c.isprintable() else "?" for c in seen.name())
        user = seen.username()
    return CardProcess(
        pid=process.pid,
        used_bytes=process.used_bytes,
        user=user,
        command=command,
        desktop=command in DESKTOP_COMMANDS,
        claim=owners.of(process.pid),
    )


class _Owners:
    """Whose run a process belongs to: below its supervisor, or in its container."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        holding = [claim for claim in claims if not claim.waits]
        self._supervisors = {
            claim.pid: claim.number
            for claim in holding
            if start_ticks(claim.pid) == claim.start_ticks
        }
        self._orphans = {pid: claim.number for claim in holding for pid in claim.orphans}
        self._containers = []
        for claim in holding:
            content = read_small(RunFolder(Path(claim.folder)).container_id)
            text = "" if content is None else content[0].decode("ascii", "replace").strip()
            if len(text) == 64:
                self._containers.append((text, claim.number))

    def of(self, pid: int) -> int | None:
        """The number of the claim, or None."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.parents()):
                found = self._supervisors.get(each.pid, self._orphans.get(each.pid))
                if found is not None:
                    return found
        if self._containers:
            with contextlib.suppress(OSError):
                cgroup = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
                for container, number in self._containers:
                    if in_container(cgroup, container):
                        return number
        return None
