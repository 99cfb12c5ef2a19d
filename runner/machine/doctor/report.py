"""All that was found, judged in the order of printing, and the record made of it. Pure.

Imports the doctor's own modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from runner.machine.doctor.budget import budget_check
from runner.machine.doctor.check import Check
from runner.machine.doctor.containers import Containers, Removal, containers_check
from runner.machine.doctor.disk import Disk, disk_check
from runner.machine.doctor.docker import Docker, docker_check, docker_gpu_check
from runner.machine.doctor.gpus import Gpus, bf16_check, gpu_check
from runner.machine.doctor.host import Host, Tools, python_check, tool_checks
from runner.machine.doctor.hub import Hub, hub_check, token_check
from runner.machine.doctor.leases import Leases, leases_check
from runner.machine.doctor.masking import printable
from runner.machine.doctor.memory import Memory, memory_check, shared_memory_check
from runner.machine.doctor.packages import Package, package_check
from runner.machine.doctor.podman import Podman, podman_check
from runner.machine.doctor.torch_build import Torch, torch_check

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Findings:
    """All that the probes found."""

    host: Host
    packages: tuple[Package, ...]
    tools: Tools
    gpus: Gpus
    torch: Torch | None
    docker: Docker
    podman: Podman
    containers: Containers
    disks: tuple[Disk, ...]
    memory: Memory
    hub: Hub
    leases: Leases


def judge(findings: Findings) -> list[Check]:
    """Every check, in the order in which they are printed."""
    host, gpus, docker = findings.host, findings.gpus, findings.docker
    return [
        python_check(host),
        *(package_check(package, gpus.driver) for package in findings.packages),
        gpu_check(gpus),
        torch_check(gpus, findings.torch),
        bf16_check(gpus),
        budget_check(gpus, docker, host),
        leases_check(findings.leases, gpus),
        docker_check(docker, host),
        docker_gpu_check(docker, gpus),
        podman_check(findings.podman, docker),
        containers_check(findings.containers),
        *(disk_check(disk) for disk in findings.disks),
        memory_check(findings.memory),
        shared_memory_check(findings.memory, host),
        *tool_checks(findings.tools),
        token_check(findings.hub),
        hub_check(findings.hub),
    ]


def make_record(
    findings: Findings,
    checks: Sequence[Check],
    when: str,
    secrets: Iterable[str],
    removed: Sequence[Removal] = (),
) -> dict[str, Any]:
    """The report, as it is written and printed: `secrets` are struck out of every text."""
    memory = findings.memory
    record = {
        "schema_version": SCHEMA_VERSION,
        "when": when,
        "host": {
            **asdict(findings.host),
            "memory_bytes": memory.total_bytes,
            "memory_limit_bytes": memory.limit_bytes,
            "gpus": [asdict(card) for card in findings.gpus.cards],
            "driver": findings.gpus.driver,
        },
        "checks": [asdict(check) for check in checks],
        "removed": [asdict(removal) for removal in removed],
        "summary": summarise(checks),
    }
    struck = tuple(secrets)
    return dict(_each_text(record, lambda text: printable(text, struck)))


def summarise(checks: Sequence[Check]) -> dict[str, int]:
    """How many checks have each status."""
    count = Counter(check.status for check in checks)
    return {status: count[status] for status in ("ok", "warning", "problem", "skipped")}


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    return value
