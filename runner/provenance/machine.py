"""The machine that a run runs on. Reads /proc and, for a GPU run, asks NVML."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from runner.plans.base import Plan
from runner.plans.facts import driver_version, list_gpus
from runner.provenance.manifest import Card, Host


def host(plan: Plan) -> Host:
    """The machine and the GPUs that the plan names."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        system = platform.system()
    on_gpu = plan.launch.device == "cuda"
    cards = list_gpus().gpus if on_gpu else ()
    return Host(
        name=platform.node(),
        system=system,
        kernel=platform.release(),
        machine=platform.machine(),
        cpu=_after("/proc/cpuinfo", "model name"),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(),
        gpus=[
            Card(
                uuid=card.uuid,
                index=card.index,
                name=card.name,
                total_bytes=card.total_bytes,
                compute_capability=card.compute_capability,
            )
            for card in cards
            if card.uuid in plan.launch.gpu_uuids
        ],
        driver=driver_version() if on_gpu else None,
    )


def _memory_bytes() -> int | None:
    words = (_after("/proc/meminfo", "MemTotal") or "").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def _after(file: str, label: str) -> str | None:
    """What follows "LABEL:" in a file of /proc."""
    try:
        for line in Path(file).read_text(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == label:
                return value.strip()
    except OSError:
        return None
    return None
