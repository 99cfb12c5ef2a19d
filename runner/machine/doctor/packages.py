"""The packages of the training stack: installed versions beside the ranges that runner asks for.

Imports the standard library, runner.common and the doctor's own `check` and
`versions`; none of the packages.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from runner.common import cuda_builds
from runner.common.packages import package_version
from runner.machine.doctor.check import Check, Status
from runner.machine.doctor.versions import is_in_range

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "deepspeed",
)

_NEEDED_FOR = {"bitsandbytes": "QLoRA (method: qlora)", "deepspeed": "DeepSpeed ZeRO"}


@dataclass(frozen=True)
class Package:
    """A package of the training stack."""

    name: str
    installed: str | None
    wanted: str
    """The range that runner asks for, such as ">=5.17,<6"; empty where it names none."""
    locked: str | None
    """The version that the tests ran with; None away from a checkout."""


def list_packages(root: Path | None = None) -> tuple[Package, ...]:
    """Installed versions beside the ranges of pyproject.toml (else of runner's own metadata)."""
    root = root or Path(__file__).resolve().parents[3]
    wanted: dict[str, str] = {}
    for requirement in _requirements(root):
        match = re.match(r"([A-Za-z0-9._-]+?)\s*((?:[<>=!~]=?=?[^;]*)?)(?:;|$)", requirement)
        if match:
            wanted[match[1].lower()] = match[2].strip()
    locked: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (root / "requirements.lock").read_text(encoding="utf-8").splitlines():
            match = re.match(r"([a-z0-9._-]+)==(\S+)", line)
            if match:
                locked.setdefault(match[1], match[2])
    return tuple(
        Package(name, package_version(name), wanted.get(name, ""), locked.get(name))
        for name in PACKAGES
    )


def _requirements(root: Path) -> list[str]:
    # a checkout's pyproject.toml is newer than the metadata of an editable install
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == "runner":
            return [line for lines in project["optional-dependencies"].values() for line in lines]
    except (OSError, ValueError, KeyError):
        pass
    try:
        return metadata.requires("runner") or []
    except metadata.PackageNotFoundError:
        return []


def package_check(package: Package, driver: str | None = None) -> Check:
    """Whether a package is there in a version within runner's range.

    Args:
        driver: NVIDIA's version; one that is older than PyPI's torch is built for is told of.
    """
    need = _NEEDED_FOR.get(package.name)
    wrong: Status = "warning" if need else "problem"
    install = f"pip install '{package.name}{package.wanted}', or all: pip install 'runner[train]'"
    best = cuda_builds.best_build(cuda_builds.parse_version(driver) or ())
    if package.name == "torch" and best is not None and best != cuda_builds.BUILDS[-1]:
        install = f"{install}; for driver {driver} with --extra-index-url {best.index}"
    if package.installed is None:
        found = "not installed" + (f"; only {need} needs it" if need else "; training needs it")
        return Check(package.name, wrong, found, install)
    if not is_in_range(package.installed, package.wanted):
        found = f"{package.installed}, outside the range {package.wanted}"
        return Check(package.name, wrong, found, install)
    found = package.installed
    if package.locked and package.installed.partition("+")[0] != package.locked:
        found += f" (tested with {package.locked})"
    return Check(package.name, "ok", found)
