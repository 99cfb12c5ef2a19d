"""Find the containers of runs by label, tell orphans from others, end and remove them.

Standard library, runner.containers.cli/labels, runner.common.errors and runner.common.processes
only. What is not surely an orphan of this user on this host is never touched: no label, a label
that can't be read, another uid, another host, a supervisor that lives.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from runner.common.errors import RunnerError
from runner.common.process_times import start_ticks
from runner.containers import labels
from runner.containers.cli import Answer, ContainerCli, explain

LOG_LINES = 200
GONE_SECONDS = 60.0  # for `rm`: a large writable layer takes long to delete
_ENDED = ("created", "configured", "exited", "stopped", "dead", "removing")


@dataclass(frozen=True)
class RunContainer:
    """A container with our labels. Anybody can set labels: what can't be read in one is None."""

    id: str
    """64 hexadecimal digits."""
    name: str
    state: str
    """docker's word: created, running, paused, restarting, removing, exited or dead."""
    exit_code: int | None
    """Where it has run and ended."""
    created: str
    """ISO 8601, UTC."""
    started: str | None
    pid: int | None
    """Of its first process, on the daemon's host; None where it does not run."""
    run: Path
    job: str
    plan: str
    uid: int | None
    supervisor: tuple[int, int] | None
    """pid and start ticks."""
    host: str
    version: str

    @property
    def ended(self) -> bool:
        """No process of it runs, nor will."""
        return self.state in _ENDED


@dataclass(frozen=True)
class Removed:
    """What was left of a container that is gone."""

    container: RunContainer
    exit_code: int | None
    """128 + n where signal n ended it; None where it never ran, or was gone before it was asked."""
    killed: bool
    """It was still running, and SIGKILL ended it: it outlived its grace."""
    log_tail: str
    """The last lines of its stdout, then of its stderr; empty where the log could not be read."""


def our_containers(cli: ContainerCli) -> list[RunContainer]:
    """All containers with the label of a run, of whatever user and host, oldest first.

    Raises:
        RefusedError: the daemon can't be asked.
    """
    out = cli.require("ps", "--all", "--no-trunc", "--quiet", "--filter", f"label={labels.RUN}")
    ids = [word for word in out.split() if re.fullmatch("[0-9a-f]{64}", word)]
    return sorted(_inspect(cli, ids), key=lambda container: container.created)


def container_of_run(cli: ContainerCli, folder: Path) -> RunContainer | None:
    """The newest container of a run, which is of this host; None where there is none.

    Raises:
        RefusedError: the daemon can't be asked.
    """
    host = labels.host_id()
    # compared here: docker's and podman's filters differ in how they read a value
    found = [one for one in our_containers(cli) if one.run == folder and one.host == host]
    return found[-1] if found else None


def orphans(
    containers: Iterable[RunContainer],
    *,
    uid: int | None = None,
    host: str | None = None,
    ticks_of: Callable[[int], int | None] = start_ticks,
) -> list[RunContainer]:
    """Those of this user (`uid`) and this host whose supervisor is gone.

    Pure but for what `ticks_of` reads: the start time of a process in clock ticks, None where
    there is none.
    """
    uid = os.geteuid() if uid is None else uid
    host = labels.host_id() if host is None else host
    return [
        container
        for container in containers
        if container.uid == uid
        and container.host == host
        and container.supervisor is not None
        and ticks_of(container.supervisor[0]) != container.supervisor[1]
    ]


def remove(cli: ContainerCli, container: RunContainer, grace_seconds: float) -> Removed:
    """SIGTERM, after the grace SIGKILL; then remove it with its anonymous volumes, and see it gone.

    A container that is gone already is no error.

    Raises:
        RefusedError: the daemon can't be asked.
        RunnerError: it is still there.
    """
    grace = max(0, round(grace_seconds))
    if not container.ended:
        answer = cli.ask(
            "stop", "-t", str(grace), container.id, timeout_seconds=grace + GONE_SECONDS
        )
        if answer.code and not _is_absent(answer):
            _require_daemon(cli, answer)  # else `rm --force` below tries by itself
    log = cli.ask("logs", "--tail", str(LOG_LINES), container.id)
    [last] = _inspect(cli, [container.id]) or [container]
    answer = cli.ask("rm", "--force", "--volumes", container.id, timeout_seconds=GONE_SECONDS)
    if _inspect(cli, [container.id]):
        raise RunnerError(
            f"container {container.name} is still there: {answer.reason}",
            f"{cli.name} rm --force {container.name}",
        )
    exit_code = last.exit_code
    killed = exit_code == 137 and not container.ended
    return Removed(container, exit_code, killed, "" if log.code else log.out + log.err)


def parse(text: str) -> list[RunContainer]:
    """Containers from the JSON of `docker inspect` or `podman inspect`; those without our label,
    or without an id, are left out.

    Raises:
        ValueError: it is no JSON list.
    """
    told = json.loads(text or "[]")
    if not isinstance(told, list):
        raise ValueError("expected a list of containers")
    found = (_parse_one(item) for item in told if isinstance(item, dict))
    return [container for container in found if container is not None]


def _parse_one(told: dict[str, object]) -> RunContainer | None:
    marks = _part(_part(told, "Config"), "Labels")
    name = str(told.get("Name") or "").removeprefix("/")
    identity = told.get("Id")
    if labels.RUN not in marks or not isinstance(identity, str) or not identity:
        return None
    state = _part(told, "State")
    status = str(state.get("Status") or "").lower()
    started = state.get("StartedAt")
    ran = isinstance(started, str) and bool(started) and not started.startswith("0001-01-01")
    code, pid = state.get("ExitCode"), state.get("Pid")
    return RunContainer(
        id=identity,
        name=name,
        state=status,
        exit_code=code if isinstance(code, int) and ran and status in _ENDED else None,
        created=str(told.get("Created") or ""),
        started=str(started) if ran else None,
        pid=pid if isinstance(pid, int) and pid > 0 else None,
        run=Path(str(marks[labels.RUN])),
        job=str(marks.get(labels.JOB, "")),
        plan=str(marks.get(labels.PLAN, "")),
        uid=labels.parse_number(str(marks.get(labels.UID, ""))),
        supervisor=labels.parse_supervisor(str(marks.get(labels.SUPERVISOR, ""))),
        host=str(marks.get(labels.HOST, "")),
        version=str(marks.get(labels.VERSION, "")),
    )


def _part(told: dict[str, object], key: str) -> dict[str, object]:
    part = told.get(key)
    return part if isinstance(part, dict) else {}


def _inspect(cli: ContainerCli, ids: list[str]) -> list[RunContainer]:
    """Those of `ids` that exist. One that goes between the listing and this is no failure."""
    if not ids:
        return []
    answer = cli.ask("inspect", "--type", "container", *ids)
    if answer.code and len(ids) > 1:
        # docker tells of the others all the same, podman not in all versions
        return [container for one in ids for container in _inspect(cli, [one])]
    if answer.code:
        if _is_absent(answer):
            return []
        raise explain(cli, answer)
    try:
        return parse(answer.out)
    except ValueError as error:
        raise RunnerError(f"{cli.name} inspect: no JSON in its answer: {error}") from error


def _is_absent(answer: Answer) -> bool:
    said = answer.err.lower()
    return "no such container" in said or "no such object" in said or "no container with" in said


def _require_daemon(cli: ContainerCli, answer: Answer) -> None:
    """Raises RefusedError where the call failed because nobody answers."""
    if cli.ask("version").code:
        raise explain(cli, answer)
