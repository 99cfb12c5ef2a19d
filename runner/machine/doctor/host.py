"""This host, its Python and the programs that a run calls.

Imports the standard library and the doctor's own `check` and `versions`.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from runner import __version__
from runner.machine.doctor.check import Check
from runner.machine.doctor.versions import version_numbers

LOWEST_PYTHON, BEYOND_PYTHON = (3, 11), (3, 15)


@dataclass(frozen=True)
class Host:
    """Facts that the report carries; nothing here is judged."""

    name: str
    system: str
    kernel: str
    machine: str
    cores: int
    python: str
    executable: str
    virtual_environment: bool
    runner: str
    container: str | None
    """The engine ("docker", "podman") where this is inside a container."""


def read_host() -> Host:
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        system = platform.system()
    return Host(
        name=platform.node(),
        system=system,
        kernel=platform.release(),
        machine=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        executable=sys.executable,
        virtual_environment=sys.prefix != sys.base_prefix,
        runner=__version__,
        container=_container(),
    )


def _container() -> str | None:
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return os.environ.get("container") or None  # noqa: SIM112 - as systemd spells it


def python_check(host: Host) -> Check:
    found = f"{host.python} ({host.executable})"
    version = version_numbers(host.python)[:2]
    if version < LOWEST_PYTHON:
        return Check("python", "problem", found, "install runner into Python 3.11 to 3.14")
    if version >= BEYOND_PYTHON:
        advice = "runner was not tried with it; Python 3.11 to 3.14 are"
        return Check("python", "warning", found, advice)
    return Check("python", "ok", found)


@dataclass(frozen=True)
class Tools:
    """Programs that a run calls: where they are, or None."""

    bash: str | None
    git: str | None


def find_tools() -> Tools:
    return Tools(shutil.which("bash"), shutil.which("git"))


def tool_checks(tools: Tools) -> list[Check]:
    """bash, which every launch script needs; git, which clones a toolkit at its commit."""
    return [
        Check("bash", "ok", tools.bash)
        if tools.bash
        else Check("bash", "problem", "not on PATH", "install it: launch.sh is a bash script"),
        Check("git", "ok", tools.git)
        if tools.git
        else Check("git", "warning", "not on PATH", "install it to clone the MGM toolkit"),
    ]
