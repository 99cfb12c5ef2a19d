"""Examine this machine: ask it, judge, write the report. Imports no torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from runner.common import durable
from runner.common.errors import UsageError
from runner.common.output import Output, field
from runner.containers.private import sweep_private
from runner.machine.doctor.containers import (
    Removal,
    describe_outcome,
    describe_removal,
    find_containers,
    remove_orphans,
)
from runner.machine.doctor.disk import read_disks
from runner.machine.doctor.docker import DOCKER_SECONDS, ask_docker
from runner.machine.doctor.gpus import NVML_SECONDS, describe_stuck_gpus, read_gpus
from runner.machine.doctor.host import find_tools, read_host
from runner.machine.doctor.hub import HUB_SECONDS, ask_hub
from runner.machine.doctor.leases import read_leases
from runner.machine.doctor.masking import collect_secrets, printable
from runner.machine.doctor.memory import read_memory
from runner.machine.doctor.packages import list_packages
from runner.machine.doctor.podman import ask_podman
from runner.machine.doctor.programs import VERSION_SECONDS
from runner.machine.doctor.report import Findings, judge, make_record
from runner.machine.doctor.torch_build import TORCH_SECONDS, ask_torch

PATIENCE_SECONDS = 3.0  # before it is said what is being waited for
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemovedContainer:
    """An orphan that was removed, or not, in words without secrets."""

    name: str
    outcome: str
    was: str
    """State, since when, what it held, of which run."""
    last_line: str
    """Of its log; empty where nothing is known of it."""


@dataclass(frozen=True)
class Examination:
    """What was found of a machine, and whether the report of it was written."""

    record: dict[str, Any]
    """As validation_report.json holds it, without secrets."""
    unwritten: OSError | None
    """Why the report was not written; None where it was."""
    removed: list[RemovedContainer]
    is_clean: bool
    """No check found a problem, no orphan stayed, and the report was written."""


def examine(out: Path, output: Output, *, fix: bool = False) -> Examination:
    """Examine this machine, and write the report to `out`.

    With `fix`, orphaned containers are removed before the machine is looked at, and folders in
    memory (secrets) whose process was killed.

    Raises:
        UsageError: the report can't lie at `out`; said before anything is asked.
    """
    _require_place(out)
    secrets = collect_secrets(os.environ)
    removed: tuple[Removal, ...] = ()
    if fix:
        removed = remove_orphans(lambda line: output.say(field("fix", printable(line, secrets))))
        for folder in sweep_private():
            output.say(field("fix", f"{folder}: removed; a process that was killed had left it"))
    findings = gather(output)
    checks = judge(findings)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    record = make_record(findings, checks, when, secrets, removed)
    unwritten: OSError | None = None
    try:
        durable.write_json(out, record)
    except OSError as error:  # a full disk is among what the report is about: still print it
        unwritten = error
    stayed = any(removal.failure for removal in removed)
    is_clean = not (unwritten or stayed or record["summary"]["problem"])
    told = [_in_words(Removal(**removal)) for removal in record["removed"]]
    return Examination(record, unwritten, told, is_clean)


def _in_words(removal: Removal) -> RemovedContainer:
    outcome, was = describe_outcome(removal), describe_removal(removal)
    return RemovedContainer(removal.name, outcome, was, removal.last_line)


def gather(output: Output) -> Findings:
    """All findings; what can take seconds is asked at the same time."""
    output.say(field("checking", "this machine; torch, Docker and the hub may take some seconds"))
    torch = _begin(ask_torch)
    gpus = _begin(read_gpus)
    docker = _begin(ask_docker)
    podman = _begin(ask_podman)
    left = _begin(find_containers)
    hub = _begin(ask_hub)

    def wait(what: str, seconds: float, future: Future[_T]) -> _T:
        try:
            return future.result(PATIENCE_SECONDS)
        except TimeoutError:
            output.say(field("waiting", f"for {what}, up to {seconds:.0f} s"))
        return future.result()

    try:
        cards = gpus.result(NVML_SECONDS)
    except TimeoutError:
        cards = describe_stuck_gpus()
    return Findings(
        host=read_host(),
        packages=list_packages(),
        tools=find_tools(),
        disks=read_disks(),
        memory=read_memory(),
        leases=read_leases(),
        gpus=cards,
        hub=wait("the hub", HUB_SECONDS, hub),
        docker=wait("Docker", DOCKER_SECONDS, docker),
        podman=wait("podman", VERSION_SECONDS, podman),
        containers=wait("the containers' daemon", DOCKER_SECONDS, left),
        torch=wait("torch's import", TORCH_SECONDS, torch),
    )


def _begin(probe: Callable[[], _T]) -> Future[_T]:
    """Start a probe in a daemon thread, which a stuck driver can't make the command wait for."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(probe())
        except BaseException as error:  # told where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _require_place(out: Path) -> None:
    folder = out.absolute().parent
    if not folder.is_dir():
        raise UsageError(
            f"the report can't be written: there is no folder {folder}",
            "make it first, or name another place with --out FILE",
        )
    if out.exists() and not out.is_file():
        raise UsageError(
            f"the report can't be written: {out} is not a file",
            f"--out {out / 'validation_report.json'}" if out.is_dir() else None,
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"the report can't be written: no permission to write into {folder}",
            "name another place with --out FILE",
        )
