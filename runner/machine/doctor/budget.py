"""What holds a run to its memory budget on this machine. Pure."""

from __future__ import annotations

from runner.machine.doctor.check import Check
from runner.machine.doctor.docker import Docker
from runner.machine.doctor.gpus import Gpus
from runner.machine.doctor.host import Host
from runner.machine.doctor.versions import version_numbers

# The driver caps a container's GPU memory from here on (docs/doctor.md).
CAP_DRIVER, CAP_TOOLKIT = (615,), (1, 20, 1)


def budget_check(gpus: Gpus, docker: Docker, host: Host) -> Check:
    """What holds a run to its memory budget on this machine, strongest first."""
    if gpus.broken:
        found = "torch's cap alone: NVML, which the watchdog reads, does not work"
        return Check("budget", "problem", found, "repair the driver (see gpu)")
    if not gpus.cards:
        return Check("budget", "ok", "host-memory budget only, on the processes of a run")
    found = "torch's cap + NVML watchdog"
    if host.container:
        found += "; inside a container NVML's process ids match nothing: it may only warn"
        return Check("budget", "warning", found, "run `runner` on the host")
    if (
        version_numbers(gpus.driver or "") >= CAP_DRIVER
        and version_numbers(docker.toolkit or "") >= CAP_TOOLKIT
    ):
        found = f"driver limit (containers; once read back) + {found}"
    return Check("budget", "ok", found)
