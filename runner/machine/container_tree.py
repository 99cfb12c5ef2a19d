"""Find a container's processes on the host, signal them, see them gone.

May import the standard library, psutil and this package; Linux only. The daemon is not asked, so
this works while dockerd does not answer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import psutil

from runner.machine.container_cgroup import in_container
from runner.machine.proc import ProcessRegistry
from runner.machine.process_tree import Processes, is_running

CGROUPS = Path("/sys/fs/cgroup")


class ContainerTree(Processes):
    """Everything that runs in one container, from its first process on. Empty until `attach`."""

    def __init__(self) -> None:
        self._main: psutil.Process | None = None
        self._list: Path | None = None
        self._roll = ProcessRegistry()

    def attach(self, pid: int) -> None:
        """Know the container by its first process, a pid of the host; gone already is no error."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._main = psutil.Process(pid)
            self._list = _cgroup_list(pid)

    @property
    def attached(self) -> bool:
        """Whether the container was seen at all."""
        return self._main is not None

    @property
    def main(self) -> int | None:
        """The first process, while it lives."""
        return self._main.pid if self._main is not None and is_running(self._main) else None

    def members(self) -> list[psutil.Process]:
        """The live processes, zombies left out."""
        if self._main is None or self.main is None:
            return []  # the kernel ends a pid namespace with its first process
        pids = self._pids(self._main)
        self._roll.keep(pids)
        return [process for pid in pids if (process := self._roll.get_or_enter(pid)) is not None]

    def member(self, pid: int) -> psutil.Process | None:
        """The live member with this pid."""
        if self._main is None or self.main is None or pid not in self._pids(self._main):
            return None
        return self._roll.get_or_enter(pid)

    def workers(self) -> list[psutil.Process]:
        """The members without the first: it hands signals on, so that others would get them twice.

        The first alone where it is all there is.
        """
        members = self.members()
        return [each for each in members if each.pid != self.main] or members

    def reap(self, leave: Collection[int]) -> dict[int, int]:
        """Nothing: a container's processes are not this one's children."""
        return {}

    def _pids(self, main: psutil.Process) -> list[int]:
        if self._list is not None:
            try:
                return [int(line) for line in self._list.read_text().split()]
            except (OSError, ValueError):
                self._list = None
        try:
            return [main.pid, *(child.pid for child in main.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []


def first_process(container_id: str, *, of_any_namespace: bool = False) -> int | None:
    """The pid here of a container's first process, by its cgroup's name; None where it is not here.

    Of the processes in that cgroup it is the one that is 1 in its own pid namespace. While a
    container is made there are passing ones beside it, so the oldest is only taken on request:
    `of_any_namespace`, for a container that runs and shares the host's (`--pid host`).
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            told = (entry / "cgroup").read_text(errors="replace")
            if not in_container(told, container_id):
                continue
            status = (entry / "status").read_text(errors="replace")
            names = [line.split() for line in status.splitlines() if line.startswith("NSpid:")]
            inside = names[0][-1] if names else ""
            if inside != "1" and not of_any_namespace:
                continue
            since = psutil.Process(int(entry.name)).create_time()
            found.append((inside != "1", since, int(entry.name)))
    return min(found)[2] if found else None


def _cgroup_list(pid: int) -> Path | None:
    """The file that lists a process's whole cgroup, where it can be read; it is cheap to ask.

    None where the process shares a cgroup with others than the container's (a host without cgroups
    for containers), so that nothing foreign is ever listed.
    """
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if line in own or place == "/":
            continue
        name = "" if not controllers else controllers.removeprefix("name=")
        file = CGROUPS / name / place.lstrip("/") / "cgroup.procs"
        with contextlib.suppress(OSError, ValueError):
            if os.access(file, os.R_OK) and pid in map(int, file.read_text().split()):
                return file
    return None
