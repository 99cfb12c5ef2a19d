"""podman, and whether an ordinary user could use it. Imports the standard library."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from runner.machine.doctor.check import Check
from runner.machine.doctor.docker import Docker
from runner.machine.doctor.programs import VERSION_SECONDS, ask_program, find_version


@dataclass(frozen=True)
class Podman:
    """podman, and whether an ordinary user could use it."""

    version: str | None
    user_namespaces: bool


def ask_podman() -> Podman:
    program = shutil.which("podman")
    version = None
    if program is not None:
        answer = ask_program([program, "--version"], VERSION_SECONDS)
        version = find_version(answer.out) or "of unknown version"
    try:
        spaces = int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0
    except (OSError, ValueError):
        spaces = True  # not told: not held against it
    return Podman(version, spaces)


def podman_check(podman: Podman, docker: Docker) -> Check:
    if podman.version is None:
        return Check("podman", "skipped", "not installed")
    if not podman.user_namespaces and not docker.server:
        found = f"{podman.version}; user namespaces are off, so only root can use it"
        return Check("podman", "warning", found, "sudo sysctl user.max_user_namespaces=15000")
    return Check("podman", "ok", podman.version)
