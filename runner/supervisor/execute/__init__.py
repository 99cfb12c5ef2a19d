"""Execute a run: an executor starts launch.sh and reports how it ended; it judges nothing."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterable
from typing import Protocol

import psutil

from runner.plans.base import Plan
from runner.runs.folder import RunFolder


class Tree(Protocol):
    """The run's processes, as pids of this machine."""

    def members(self) -> list[psutil.Process]: ...
    def watched(self, search_seconds: float = 1.0) -> list[psutil.Process]: ...
    def member(self, pid: int) -> psutil.Process | None: ...
    def workers(self) -> list[psutil.Process]: ...
    def send(self, number: signal.Signals, pids: Iterable[int]) -> list[int]: ...
    def kill_all(self, timeout_seconds: float = 10.0) -> list[psutil.Process]: ...
    def reap(self, leave: Collection[int]) -> dict[int, int]: ...


class Executor(Protocol):
    """A place for a run: local processes, a container."""

    argv: list[str]
    notes: list[str]
    container_id: str | None

    @property
    def tree(self) -> Tree: ...
    @property
    def pid(self) -> int: ...
    def start(self) -> None: ...
    def ended(self) -> bool: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def start_failure(self) -> tuple[str, str] | None: ...
    def clear(self) -> list[str]: ...


def executor_for(folder: RunFolder, plan: Plan, *, resume: bool) -> Executor:
    """The executor that the plan names."""
    if plan.container is None:
        from runner.supervisor.execute.local import LocalExecutor

        return LocalExecutor(folder, resume=resume)
    from runner.supervisor.execute.docker import DockerExecutor

    return DockerExecutor(folder, plan, resume=resume)
