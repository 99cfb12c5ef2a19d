"""The GPUs as they are now, each process on them with its user, its command and its run.

Reads NVML (an open one is given) and /proc, by psutil; decides nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

from runner.common.process_times import pid_namespace
from runner.common.processes import real_uid
from runner.machine.container_cgroup import in_container
from runner.machine.leases.kernel import is_process
from runner.machine.leases.lease_file import plain
from runner.machine.leases.models import Card, CardProcess, Identity, Lease
from runner.machine.leases.run_files import container_of
from runner.machine.nvml import NvmlFailed
from runner.machine.readings import DeviceProcess, DeviceReading, DeviceSource

DESKTOP_COMMANDS = frozenset(
    (
        *("X", "Xorg", "Xwayland", "gnome-shell", "gnome-session-b", "mutter", "kwin_x11"),
        *("kwin_wayland", "plasmashell", "cinnamon", "xfwm4", "sway", "Hyprland", "weston"),
        *("gdm", "gdm-x-session", "sddm", "lightdm", "gnome-remote-de", "nxnode.bin"),
    )
)
"""Names of what draws a desktop (as in /proc/PID/comm, 15 letters at most)."""


def read_cards(nvml: DeviceSource, claims: Iterable[Lease]) -> tuple[Card, ...]:
    """Every GPU that NVML lists; one that can't be read counts as lost.

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
        command = plain(seen.name())
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
    """Whose run a process belongs to: below its supervisor, or in its container.

    A claim and its run folder name pids and a container as they like. So what they name is the
    run's only where it is the claimant's own process.
    """

    def __init__(self, claims: Iterable[Lease]) -> None:
        holding = [claim for claim in claims if not claim.waits]
        here = (None, pid_namespace())
        self._roots = {
            claim.pid: claim.identity
            for claim in holding
            if claim.pid_namespace in here and is_process(claim.pid, claim.start_ticks, claim.uid)
        }
        self._roots |= {pid: claim.identity for claim in holding for pid in claim.orphans}
        self._containers = [
            (container, claim.identity)
            for claim in holding
            if (container := container_of(claim)) is not None
        ]

    def of(self, pid: int) -> Identity | None:
        """The claim, or None."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.parents()):
                if each.pid in self._roots:
                    return self._roots[each.pid]
        if self._containers:
            uid = real_uid(pid)
            with contextlib.suppress(OSError):
                cgroup = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
                for container, claim in self._containers:
                    if claim[1] == uid and in_container(cgroup, container):
                        return claim
        return None
