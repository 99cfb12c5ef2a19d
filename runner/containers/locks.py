"""Lock files with hashes: what they name, what of it a Python installs; the CPU lock.

Standard library, packaging and runner.common.errors. `python -m runner.containers.locks LOCK
HASHES` prints the CPU lock; `./just lock` calls it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker, default_environment
from packaging.utils import canonicalize_name

from runner.common import terminal
from runner.common.errors import RunnerError

_ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[^\s;\\]+)(?:\s*;(?P<marker>[^\\]*))?"
)


@dataclass(frozen=True)
class Locked:
    """One package of a lock."""

    name: str
    """In its canonical form."""
    version: str
    marker: str
    """Where it is installed at all; "" for everywhere."""
    hashes: tuple[str, ...]
    """sha256 of each file that may be it; none in a lock without hashes."""


def read_lock(text: str) -> list[Locked]:
    """The packages of a lock, in its order."""
    found: list[Locked] = []
    for block in _blocks(text):
        match = _ENTRY.match(block[0])
        if match:
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", "\n".join(block))
            marker = (match["marker"] or "").strip()
            name = canonicalize_name(match["name"])
            found.append(Locked(name, match["version"], marker, tuple(hashes)))
    return found


def installs(locked: list[Locked], *, python: str, machine: str) -> dict[str, str]:
    """Name to version of what a lock installs on Linux with that Python ("3.12.3") and machine."""
    environment = {
        **{key: str(value) for key, value in default_environment().items()},
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }
    return {
        package.name: package.version
        for package in locked
        if not package.marker or Marker(package.marker).evaluate(environment)
    }


def cpu_lock(text: str, hashes: str) -> str:
    """The lock of the CPU image: torch's CPU build, without the CUDA packages that it lacks.

    `hashes` has lines of VERSION TAG MACHINE SHA256. Raises RunnerError where it has none for the
    lock's torch.
    """
    lines = ["# From train.lock and torch-cpu.hashes, by: ./just lock"]
    for block in _blocks(text):
        match = _ENTRY.match(block[0])
        if match is None or is_of_cuda(match["name"]):
            continue
        if match["name"] != "torch":
            lines.extend(block)
            continue
        version = f"{match['version']}+cpu"
        rows = [line.split() for line in hashes.splitlines() if not line.startswith("#")]
        known = sorted(row[3] for row in rows if len(row) == 4 and row[0] == version)
        if not known:
            raise RunnerError(
                f"no hashes of torch {version} are known",
                "add those of https://download.pytorch.org/whl/cpu/torch to "
                "docker/torch-cpu.hashes",
            )
        lines.append(
            " \\\n".join([f"torch=={version}", *(f"    --hash=sha256:{h}" for h in known)])
        )
    return "\n".join(lines) + "\n"


def is_of_cuda(name: str) -> bool:
    """Packages that only torch's CUDA build asks for; nvidia-ml-py is the guard's."""
    return name == "triton" or (name != "nvidia-ml-py" and name.startswith(("nvidia-", "cuda-")))


def _blocks(text: str) -> list[list[str]]:
    """The lines of each package: its own and its hashes'."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if _ENTRY.match(line):
            blocks.append([line])
        elif blocks and line.startswith(" "):
            blocks[-1].append(line)
    return blocks


if __name__ == "__main__":
    lock, hashes = (Path(name).read_text(encoding="utf-8") for name in sys.argv[1:3])
    terminal.put(cpu_lock(lock, hashes), end="")
