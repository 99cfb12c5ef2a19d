"""Processes of a run that outlived its supervisor.

Imports the standard library, runner.common.processes and runner.runs.records. A trainer ends when
its supervisor is killed, and so do the processes in a script's process group; processes that a
script started elsewhere keep running unguarded, and their folder must not be deleted. Each start
gives its processes the supervisor's pid and start time in their environment, and a session of their
own, or a container: by these they are found.
"""

from __future__ import annotations

from pathlib import Path

from runner.common import durable
from runner.common.process_times import boot_id, start_ticks
from runner.common.processes import real_uid
from runner.runs.folder import RunFolder
from runner.runs.protocol import SUPERVISOR_VARIABLE
from runner.runs.ranks import living_engines
from runner.runs.records import supervisor_of


def living_processes(folder: RunFolder) -> list[int]:
    """pids of all processes of this run's last start that live, as seen from here.

    All of /proc is looked at, unless the machine was started anew since: only for a run without a
    supervisor.
    """
    engines = living_engines(folder)
    supervisor = supervisor_of(folder)
    if supervisor.get("boot_id") not in (None, boot_id()):
        return engines
    signs = _Signs(folder, supervisor.get("pid"), supervisor.get("start_ticks"))
    try:
        owner = folder.path.stat().st_uid
    except OSError:
        return engines
    found = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    fitting = (pid for pid in found if signs.fit(pid) and real_uid(pid) == owner)
    return sorted({*engines, *fitting})


class _Signs:
    """By what the processes of a start are known."""

    def __init__(self, folder: RunFolder, pid: int | None, ticks: int | None) -> None:
        own = f"{SUPERVISOR_VARIABLE}={pid}:{ticks}".encode()
        self._own = None if pid is None or ticks is None else own
        self._session, self._since = _launched(folder, ticks)
        container = durable.read_word(folder.container_id)
        self._container = container if len(container) == 64 else None

    def fit(self, pid: int) -> bool:
        """Whether it is one of them, and lives."""
        found = self._in_environment(pid) or self._in_session(pid) or self._in_container(pid)
        return found and start_ticks(pid) is not None

    def _in_environment(self, pid: int) -> bool:
        return self._own is not None and self._own in _read(pid, "environ").split(b"\0")

    def _in_session(self, pid: int) -> bool:
        """A script may clear its environment; a pid is no other's while it names a session."""
        if self._session is None:
            return False
        fields = _read(pid, "stat").rpartition(b")")[2].split()
        return (
            len(fields) > 19
            and int(fields[3]) == self._session
            and int(fields[19]) >= self._since
            and (pid != self._session or int(fields[19]) == self._since)
        )

    def _in_container(self, pid: int) -> bool:
        return self._container is not None and self._container.encode() in _read(pid, "cgroup")


def _launched(folder: RunFolder, supervisor_ticks: int | None) -> tuple[int | None, int]:
    """pid and start time of the last start's launch script, which leads a session."""
    last = {}
    for event in durable.read_jsonl(folder.events):
        if event.get("kind") == "started":
            last = event
    pid, ticks = last.get("pid"), last.get("start_ticks")
    if type(pid) is not int or type(ticks) is not int or ticks < (supervisor_ticks or 0):
        return None, 0
    return pid, ticks


def _read(pid: int, name: str) -> bytes:
    """A file of /proc/PID; empty where the process is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
