"""Containers that runs left behind: find, describe, remove. The one thing doctor changes.

Imports the standard library, runner.containers, machine and the doctor's own modules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from runner.common.errors import RunnerError
from runner.common.units import format_bytes
from runner.containers import cli as cli_module
from runner.containers import ready
from runner.containers.cli import ContainerCli, find_cli
from runner.containers.orphans import RunContainer, orphans, our_containers, remove
from runner.machine.container_cgroup import in_container
from runner.machine.doctor.check import Check
from runner.machine.doctor.docker import DOCKER_SECONDS
from runner.machine.doctor.gpus import NVML_SECONDS
from runner.machine.doctor.masking import mask_url
from runner.machine.doctor.programs import ask_program
from runner.machine.nvml import Nvml, NvmlFailed, NvmlUnavailable, library_present

GRACE_SECONDS = 60.0  # the guard's own grace: a trainer saves a checkpoint in it


@dataclass(frozen=True)
class Containers:
    """Containers of runs: the orphans by name, and how many others there are."""

    orphans: tuple[str, ...] = ()
    """Names of those of this user and host whose supervisor is gone."""
    others: int = 0
    """Of runs that go on, of other users, of other hosts."""
    skipped: str = ""
    """Why nobody was asked."""


@dataclass(frozen=True)
class Removal:
    """An orphan that --fix removed, or tried to."""

    name: str
    run: str
    """The run's folder."""
    since: str
    """When it was started, else made; ISO 8601, UTC."""
    state: str
    """docker's word for it before it was removed."""
    gpu_bytes: int | None
    """None where NVML told of none."""
    exit_code: int | None = None
    last_line: str = ""
    """Of its log."""
    failure: str = ""

    def done(self, exit_code: int | None, last_line: str) -> Removal:
        return replace(self, exit_code=exit_code, last_line=last_line)

    def failed(self, why: str) -> Removal:
        return replace(self, failure=why)


@dataclass(frozen=True)
class _Found:
    cli: ContainerCli
    orphans: tuple[RunContainer, ...]
    others: int


def find_containers() -> Containers:
    """How many containers are orphans of ours. Waits at most DOCKER_SECONDS for a daemon."""
    found = _find()
    if isinstance(found, str):
        return Containers(skipped=found)
    return Containers(tuple(one.name for one in found.orphans), found.others)


def remove_orphans(
    say: Callable[[str], None], grace_seconds: float = GRACE_SECONDS
) -> tuple[Removal, ...]:
    """End and remove every orphan, one after the other; `say` is told of each before and after.

    What can't be removed is in what comes back, and doesn't keep the next from being tried.
    """
    found = _find()
    if isinstance(found, str):
        say(f"no orphans looked for: {found}")
        return ()
    if not found.orphans:
        say("no orphans of runs")
        return ()
    held = _within(NVML_SECONDS, lambda: read_gpu_bytes(one.id for one in found.orphans)) or {}
    removals = []
    for one in found.orphans:
        removal = Removal(
            name=one.name,
            run=str(one.run),
            since=one.started or one.created,
            state=one.state,
            gpu_bytes=held.get(one.id),
        )
        say(f"{one.name}: {describe_removal(removal)}")
        try:
            gone = remove(found.cli, one, grace_seconds)
        except RunnerError as error:
            removal = removal.failed(error.message)
        else:
            lines = gone.log_tail.strip().splitlines()
            removal = removal.done(gone.exit_code, lines[-1] if lines else "")
        say(f"{one.name}: {describe_outcome(removal)}")
        removals.append(removal)
    return tuple(removals)


def describe_removal(removal: Removal) -> str:
    """What it is: state, since when, what it holds, of which run."""
    held = "" if removal.gpu_bytes is None else f", {format_bytes(removal.gpu_bytes)} of GPU memory"
    return f"{removal.state} since {removal.since[:19]}Z{held}, run {removal.run}"


def describe_outcome(removal: Removal) -> str:
    """What became of it."""
    if removal.failure:
        return f"not removed: {removal.failure}"
    code = "never ran" if removal.exit_code is None else f"exit code {removal.exit_code}"
    return f"removed ({code})"


def read_gpu_bytes(ids: Iterable[str]) -> dict[str, int]:
    """What the processes of these containers hold on all GPUs, in bytes, as far as NVML tells.

    Without those that hold nothing or of which nothing is known.
    """
    wanted = list(ids)
    held: dict[str, int] = {}
    if not library_present():
        return held
    try:
        with Nvml() as nvml:
            for index, _ in nvml.devices():
                for process in nvml.read(index).processes or ():
                    owner = _owner(process.pid, wanted)
                    if owner is not None and process.used_bytes is not None:
                        held[owner] = held.get(owner, 0) + process.used_bytes
    except (NvmlUnavailable, NvmlFailed):  # the check `gpu` tells of it
        return held
    return held


def _within(seconds: float, question: Callable[[], dict[str, int]]) -> dict[str, int] | None:
    """The answer, or None where a stuck driver gives none: it must not keep orphans from ending."""
    answers: list[dict[str, int]] = []
    asking = threading.Thread(target=lambda: answers.append(question()), daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else None


def _owner(pid: int, ids: list[str]) -> str | None:
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((one for one in ids if in_container(text, one)), None)


def _find() -> _Found | str:
    """The orphans, or why they can't be told."""
    cli = find_cli()
    if cli is None:
        return "no docker on PATH"
    # asked by `ask`, which ends a client that hangs with all that it started
    answer = ask_program(cli.argv(*ready.INFO), DOCKER_SECONDS)
    if answer.timed_out:
        return f"{cli.name} did not answer in {DOCKER_SECONDS:.0f} s"
    code = 127 if answer.code is None else answer.code
    told = ready.parse_info(cli_module.Answer(code, answer.out, answer.err))
    if isinstance(told, cli_module.Answer):
        return _said(cli_module.explain(cli, told))
    try:
        ours = our_containers(cli)
    except RunnerError as error:
        return _said(error)
    left = orphans(ours)
    return _Found(cli, tuple(left), len(ours) - len(left))


def _said(error: RunnerError) -> str:
    return " ".join(mask_url(word) if "://" in word else word for word in error.message.split())


def containers_check(containers: Containers) -> Check:
    """What runs left behind, which may hold GPU memory that nobody watches."""
    if containers.skipped:
        return Check("containers", "skipped", containers.skipped)
    others = containers.others
    rest = f"{others} of runs that go on, or of others" if others else ""
    if not containers.orphans:
        return Check("containers", "ok", f"no orphans{'; ' if rest else ''}{rest}")
    number = len(containers.orphans)
    names = ", ".join(containers.orphans[:5]) + (", ..." if number > 5 else "")
    found = f"{number} left by runs whose supervisor is gone ({names}){'; ' if rest else ''}{rest}"
    return Check("containers", "warning", found, "runner doctor --fix ends and removes them")
