"""Judges what the probes found: values in, values out.

Imports runner.machine.doctor's probes and units.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from runner.common import cuda_builds
from runner.common.units import GIB, format_bytes
from runner.machine.doctor.leases import Leases, describe
from runner.machine.doctor.probes import (
    DOCKER_SECONDS,
    HUB_SECONDS,
    Containers,
    Disk,
    Docker,
    Gpus,
    Host,
    Hub,
    Memory,
    Package,
    Podman,
    Removal,
    Tools,
    Torch,
)

SCHEMA_VERSION = 1
DISK_WARNING_BYTES = 10 * GIB
MEMORY_WARNING_BYTES = 4 * GIB  # importing the training stack alone takes about 1 GiB
SHARED_WARNING_BYTES = 1 * GIB
LOWEST_PYTHON, BEYOND_PYTHON = (3, 11), (3, 15)
BF16_CAPABILITY = 8.0
# The driver caps a container's GPU memory from here on (docs/doctor.md).
CAP_DRIVER, CAP_TOOLKIT = (615,), (1, 20, 1)
_NEEDED_FOR = {"bitsandbytes": "QLoRA (method: qlora)", "deepspeed": "DeepSpeed ZeRO"}

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    """problem: runs fail here, or are not guarded; warning: some can; skipped: not asked."""
    found: str
    advice: str | None = None
    """What to do; None where nothing needs doing."""


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
        cuda_check(gpus, findings.torch),
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


def printable(text: str, secrets: tuple[str, ...]) -> str:
    """Fit for a terminal and for a stranger: no control characters, no secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = re.sub(r"://[^/\s@]+@", "://***@", text)
    # a path that is no UTF-8, an escape sequence in what a program said
    text = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text)


# Python and packages ----------------------------------------------------------------------------


def python_check(host: Host) -> Check:
    found = f"{host.python} ({host.executable})"
    version = _numbers(host.python)[:2]
    if version < LOWEST_PYTHON:
        return Check("python", "problem", found, "install runner into Python 3.11 to 3.14")
    if version >= BEYOND_PYTHON:
        advice = "runner was not tried with it; Python 3.11 to 3.14 are"
        return Check("python", "warning", found, advice)
    return Check("python", "ok", found)


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
    if not within(package.installed, package.wanted):
        found = f"{package.installed}, outside the range {package.wanted}"
        return Check(package.name, wrong, found, install)
    found = package.installed
    if package.locked and package.installed.partition("+")[0] != package.locked:
        found += f" (tested with {package.locked})"
    return Check(package.name, "ok", found)


def within(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as ">=5.17,<6"; a pre-release counts as its release."""
    have = _numbers(version)
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        match = re.match(r"(>=|<=|==|!=|>|<)\s*(.+)", clause)
        if match is None:
            continue
        limit = _numbers(match[2])
        width = max(len(have), len(limit))
        left = have + (0,) * (width - len(have))
        right = limit + (0,) * (width - len(limit))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            ">": left > right,
            "<": left < right,
        }[match[1]]
        if not holds:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


# GPU --------------------------------------------------------------------------------------------


def gpu_check(gpus: Gpus) -> Check:
    if gpus.broken:
        if "mismatch" in gpus.absence.lower():
            advice = "the driver was updated while it ran: reboot, or reload the nvidia modules"
        else:
            advice = "look at `nvidia-smi` and `dmesg`; in a container, start it anew"
        return Check("gpu", "problem", gpus.absence, advice)
    if not gpus.cards and gpus.module:
        found = f"the NVIDIA driver {gpus.module} is loaded, but {gpus.absence}"
        advice = "in a container: start it with --gpus all and the capability `utility`"
        return Check("gpu", "warning", found, advice + "; else install the driver's libraries")
    if not gpus.cards and gpus.hardware:
        found = f"an NVIDIA GPU is in this machine, but {gpus.absence}"
        return Check("gpu", "warning", found, "install NVIDIA's driver to train on it")
    if not gpus.cards:
        return Check("gpu", "skipped", f"{gpus.absence}; jobs run on the CPU")
    lost = [str(card.index) for card in gpus.cards if card.lost]
    cards = ", ".join(
        f"{card.index}: {card.name} "
        + ("(lost)" if card.lost else f"({format_bytes(card.total_bytes)})")
        for card in gpus.cards
    )
    found = f"driver {gpus.driver or 'of unknown version'}; {cards}"
    if lost:
        advice = f"GPU {', '.join(lost)} needs a reset or a reboot; see `dmesg | grep Xid`"
        return Check("gpu", "problem", found, advice)
    return Check("gpu", "ok", found)


def cuda_check(gpus: Gpus, torch: Torch | None) -> Check:
    """Whether this build of torch fits the GPUs and their driver."""
    name = "torch build"
    if torch is None:
        found = "torch is not installed"
        best = cuda_builds.best_build(cuda_builds.parse_version(gpus.driver) or ())
        if gpus.cards and best is not None:
            found += f"; driver {gpus.driver} takes {best.tag}"
        return Check(name, "skipped", found)
    if torch.failure:
        advice = "reinstall torch, or look for what its message names"
        return Check(name, "problem", f"torch can't be asked: {torch.failure}", advice)
    built = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.hip}" if torch.hip else "CPU only"
    found = f"{torch.version}, {built}"
    if not gpus.cards:
        if torch.devices:
            found += f"; sees {torch.devices} GPU(s) that NVML does not list"
            return Check(name, "warning", found, "without NVML only torch's own cap guards them")
        return Check(name, "ok", found)
    if torch.cuda is None:
        advice = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return Check(name, "problem", f"{found}: it can't use the GPU", advice)
    if old := cuda_builds.too_old(gpus.driver, torch.cuda):
        said = f": {torch.said}" if torch.said and not torch.devices else ""
        return Check(name, "problem", f"{found}: {old}{said}", _other_build(gpus, torch))
    if not torch.devices and gpus.visible is not None:
        found += f"; CUDA_VISIBLE_DEVICES={gpus.visible!r} hides the GPUs"
        return Check(name, "warning", found, "unset CUDA_VISIBLE_DEVICES")
    if not torch.devices:
        said = f": {torch.said}" if torch.said else ""
        found += f"; it can't use the GPU with driver {gpus.driver}{said}"
        advice = "renew the driver, or install a torch built for an older CUDA"
        return Check(name, "problem", found, advice)
    strange = [
        f"{card.name} ({card.compute_capability})"
        for card in gpus.cards
        if not _has_kernels(torch.architectures, card.compute_capability)
    ]
    if strange:
        found += f"; it has no kernels for {', '.join(strange)}"
        return Check(name, "problem", found, "install a torch built for this GPU")
    seen = f"; sees {torch.devices} of {len(gpus.cards)} GPU(s)"
    if gpus.visible is not None:
        seen += f" (CUDA_VISIBLE_DEVICES={gpus.visible!r})"
    return Check(name, "ok", found + seen)


def _other_build(gpus: Gpus, torch: Torch) -> str:
    """How to come by the build of the same torch that this driver takes."""
    version = torch.version.partition("+")[0]
    pip = f"pip install --force-reinstall --extra-index-url {{index}} 'torch=={version}'"
    checkout = f"in a checkout {cuda_builds.INDEX_VARIABLE}={{index}} ./just setup"
    return cuda_builds.way_out(gpus.driver, f"{pip}, {checkout}")


def _has_kernels(architectures: tuple[str, ...], capability: float | None) -> bool:
    """Binaries serve their major version from their minor on; PTX all that is newer."""
    if capability is None or not architectures:
        return True
    card = round(capability * 10)
    for architecture in architectures:
        match = re.match(r"(sm|compute)_(\d+)", architecture)
        number = int(match[2]) if match else card + 1
        newer_by_ptx = match is not None and match[1] == "compute"
        if number <= card and (newer_by_ptx or number // 10 == card // 10):
            return True
    return False


def bf16_check(gpus: Gpus) -> Check:
    known = [c for c in gpus.cards if c.compute_capability is not None]
    if not known:
        return Check("bf16", "skipped", "no GPU whose compute capability is known")
    found = ", ".join(f"{card.index}: {card.compute_capability}" for card in known)
    found = f"compute capability {found}"
    without = [
        str(c.index)
        for c in known
        if c.compute_capability and c.compute_capability < BF16_CAPABILITY
    ]
    if without:
        found += f"; no bf16 on GPU {', '.join(without)}"
        advice = "train in fp32; fp16 gives NaN with some models (Qwen)"
        return Check("bf16", "warning", found, advice)
    return Check("bf16", "ok", found)


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
    if _numbers(gpus.driver or "") >= CAP_DRIVER and _numbers(docker.toolkit or "") >= CAP_TOOLKIT:
        found = f"driver limit (containers; once read back) + {found}"
    return Check("budget", "ok", found)


# Containers -------------------------------------------------------------------------------------


def leases_check(leases: Leases, gpus: Gpus) -> Check:
    """Whose the folder is in which runs say which GPUs they have (docs/gpus.md)."""
    if not gpus.cards:
        return Check("leases", "skipped", "not looked at: there is no GPU to take")
    status, found, advice = describe(leases)
    return Check("leases", status, found, advice)


def docker_check(docker: Docker, host: Host) -> Check:
    if docker.client is None:
        if host.container:
            return Check("docker", "skipped", f"this is inside a container ({host.container})")
        advice = "jobs run as local processes; for containers: https://docs.docker.com/engine"
        return Check("docker", "warning", "no client on PATH", advice)
    at = f" at {docker.address} (DOCKER_HOST)" if docker.address else ""
    if docker.server and docker.is_podman:
        return Check("docker", "ok", "podman's stand-in for docker")
    if docker.server:
        kind = ", rootless" if docker.rootless else ""
        return Check("docker", "ok", f"daemon {docker.server}{at}{kind}")
    said = docker.failure.lower()
    if docker.failure == "timeout":
        found = f"the daemon{at} did not answer in {DOCKER_SECONDS:.0f} s"
        advice = "look at it: systemctl status docker"
    elif "permission denied" in said:
        found = f"no permission to use the daemon{at}"
        advice = "sudo usermod -aG docker $USER, then log in again; or rootless Docker"
    elif "cannot connect" in said or "is the docker daemon running" in said:
        found = f"the daemon{at} is not running"
        advice = "check DOCKER_HOST" if at else "sudo systemctl start docker"
    else:
        found = f"the daemon{at} can't be used: {docker.failure}"
        advice = "look at `docker info`"
    return Check("docker", "warning", found, advice)


def docker_gpu_check(docker: Docker, gpus: Gpus) -> Check:
    if not gpus.cards:
        return Check("docker gpu", "skipped", "no GPU to hand to containers")
    if not docker.server or docker.is_podman:
        return Check("docker gpu", "skipped", "no Docker daemon to ask")
    version = f"nvidia-container-toolkit {docker.toolkit}" if docker.toolkit else "NVIDIA's runtime"
    if docker.nvidia:
        return Check("docker gpu", "ok", version)
    found = "the daemon knows neither NVIDIA's runtime nor its devices"
    advice = "install nvidia-container-toolkit; sudo nvidia-ctk runtime configure; restart docker"
    return Check("docker gpu", "warning", found, advice)


def podman_check(podman: Podman, docker: Docker) -> Check:
    if podman.version is None:
        return Check("podman", "skipped", "not installed")
    if not podman.user_namespaces and not docker.server:
        found = f"{podman.version}; user namespaces are off, so only root can use it"
        return Check("podman", "warning", found, "sudo sysctl user.max_user_namespaces=15000")
    return Check("podman", "ok", podman.version)


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


# Disk and memory --------------------------------------------------------------------------------


def disk_check(disk: Disk) -> Check:
    name = f"disk {disk.purpose}"
    if disk.blocked_by is not None:
        found = f"{disk.path} can't be made: {disk.blocked_by} is a file"
        return Check(name, "problem", found, "move the file, or name another folder")
    if disk.free_bytes is None:
        found = f"{disk.path} can't be looked at"
        return Check(name, "problem", found, "check its permissions and its mount")
    later = "" if disk.there else ", made at first use"
    found = f"{format_bytes(disk.free_bytes)} free of {format_bytes(disk.total_bytes)}"
    found += f" ({disk.path}{later})"
    if not disk.writable:
        wrong: Status = "problem" if disk.purpose == "runs" else "warning"
        variable = {"runs": "RUNNER_RUNS", "cache": "RUNNER_CACHE"}.get(
            disk.purpose, "HF_HUB_CACHE"
        )
        return Check(name, wrong, f"{found}; not writable", f"name another folder in {variable}")
    if disk.free_bytes < DISK_WARNING_BYTES:
        advice = "free some, or use another disk: weights and checkpoints take 10 GiB and more"
        return Check(name, "warning", found, advice)
    return Check(name, "ok", found)


def memory_check(memory: Memory) -> Check:
    found = f"{format_bytes(memory.available_bytes)} available"
    found += f" of {format_bytes(memory.total_bytes)}"
    available = memory.available_bytes
    if memory.limit_bytes is not None:
        found += f"; this process's cgroup may use {format_bytes(memory.limit_bytes)}"
        available = min(available, memory.limit_bytes)
    if available < MEMORY_WARNING_BYTES:
        return Check("memory", "warning", found, "end what else runs, or use a larger machine")
    return Check("memory", "ok", found)


def shared_memory_check(memory: Memory, host: Host) -> Check:
    name = "shared memory"
    advice = "NCCL and data loaders share memory through it: "
    advice += "start the container with --shm-size 8g" if host.container else "mount it larger"
    if memory.shared_bytes is None:
        return Check(name, "warning", "there is no /dev/shm", advice)
    found = f"{format_bytes(memory.shared_bytes)} in /dev/shm"
    if memory.shared_bytes < SHARED_WARNING_BYTES:
        return Check(name, "warning", found, advice)
    return Check(name, "ok", found)


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


# Network ----------------------------------------------------------------------------------------


def token_check(hub: Hub) -> Check:
    """Says whether there is a token, and where; never what it is."""
    if hub.token:
        return Check("hub token", "ok", f"set ({hub.token})")
    return Check("hub token", "ok", "not set: public models and data only")


def hub_check(hub: Hub) -> Check:
    if hub.offline:
        return Check("hub", "skipped", f"not asked: {hub.offline} (what is cached can be used)")
    place = hub.endpoint + (" (HF_ENDPOINT)" if hub.mirror else "")
    if hub.proxy:
        place += f" through the proxy {hub.proxy}"
    local = "what is on this machine still runs; HF_HUB_OFFLINE=1 saves the waiting"
    if hub.status is not None:
        if hub.status < 400:
            return Check("hub", "ok", f"{place} answers")
        advice = {
            401: "check HF_ENDPOINT and the mirror's password",
            404: "check HF_ENDPOINT: no hub seems to be there",
            407: "the proxy wants a user and password",
            429: "wait, or set HF_TOKEN for a larger share",
        }.get(hub.status, local)
        return Check("hub", "warning", f"{place} answers HTTP {hub.status}", advice)
    if hub.failure == "url":
        found = f"HF_ENDPOINT is no address: {hub.endpoint!r}"
        advice = "unset it, or write it with its scheme, such as https://hf-mirror.com"
        return Check("hub", "problem", found, advice)
    why, advice = {
        "refused": ("refused the connection", local),
        "timeout": (f"did not answer in {HUB_SECONDS:.0f} s", local),
        "name": ("has a name that can't be resolved", local),
        "tls": ("has a certificate that is not trusted", "name your authority in SSL_CERT_FILE"),
        "proxy": ("was not let through", "check the proxy and its password"),
    }.get(hub.failure, ("can't be reached", local))
    said = f": {hub.text}" if hub.text and hub.failure not in ("timeout", "refused") else ""
    return Check("hub", "warning", f"{place} {why}{said}", advice)
