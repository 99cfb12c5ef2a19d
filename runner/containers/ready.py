"""Check once, by the daemon, what must hold before a container starts, and advise where it doesn't.

Standard library, runner.containers.cli, runner.common.errors and runner.common.units only. What
can't be determined is "unknown" or None and refuses nothing: the run's own failure is explained
later (refusals.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from runner.common.errors import RefusedError
from runner.common.units import MIB, format_bytes
from runner.containers.cli import Answer, ContainerCli, explain

INFO = ("info", "--format", "{{json .}}")
"""The question that `parse_info` reads the answer to."""
HOOK = "nvidia-container-runtime-hook"
FULL_BYTES = 512 * MIB  # less than this and not even a container's own log fits for long
MINIMUM_DRIVERS: dict[int, tuple[str, str]] = {
    11: ("450.80.02", "11.8"),
    12: ("525.60.13", "12.9"),
    13: ("580.65.06", "13.x"),
}
"""CUDA's major version: the oldest Linux driver that runs any of its minors, and the newest minor.

By minor version compatibility: docs.nvidia.com/deploy/cuda-compatibility/minor-version-
compatibility.html (450, 525, 580) with the exact versions of the CUDA Toolkit Release Notes, table
"CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility". What is
not in here is not judged.
"""
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
_PODMAN_HOOKS = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d")
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

Nvidia = Literal["runtime", "hook", "cdi", "none", "unknown"]


@dataclass(frozen=True)
class Daemon:
    """Who starts containers here. Bytes, and None for what it does not tell."""

    version: str
    rootless: bool
    cgroup_version: int | None
    storage_free_bytes: int | None
    """Where images and containers lie; None where that is on another machine."""
    nvidia: Nvidia
    """What hands GPUs to containers: NVIDIA's runtime, its hook on dockerd's PATH, CDI devices."""
    is_podman: bool
    storage_root: Path | None = None
    limits_memory: bool | None = None
    """False: it starts the container without the limit and only warns."""
    limits_pids: bool | None = None


def require_ready(
    cli: ContainerCli,
    *,
    gpus: bool,
    driver_version: str | None,
    image_cuda: str | None,
    disk_needed_bytes: int | None,
) -> Daemon:
    """Ask the daemon; nothing is started or changed.

    `driver_version` is NVML's, `image_cuda` the CUDA version that the image says it is built for
    (nvidia/cuda's CUDA_VERSION); None where unknown. They count only with `gpus`.

    Raises:
        RefusedError: it does not answer, has no way to hand out GPUs, its disk is full or holds
            less than is needed, or the driver is older than the image's CUDA needs.
    """
    daemon = ask_daemon(cli)
    if gpus:
        require_nvidia(daemon)
        require_driver(driver_version, image_cuda)
    require_disk(daemon, disk_needed_bytes, cli.name)
    return daemon


def ask_daemon(cli: ContainerCli) -> Daemon:
    """The daemon as it describes itself, with what can be seen of it from here.

    Raises:
        RefusedError: it can't be used.
    """
    answer = cli.ask(*INFO)
    told = parse_info(answer)
    if isinstance(told, Answer):
        raise explain(cli, told)
    daemon, info = told
    return look_around(cli, daemon, info)


def parse_info(answer: Answer) -> tuple[Daemon, dict[str, object]] | Answer:
    """The daemon of docker's or podman's `info`, and all that was said; or why there is none.

    Pure. The failure comes back as an Answer whose `err` has the daemon's words: some clients put
    them into the JSON and nothing on stderr, some end with 0 all the same.
    """
    info = _last_object(answer.out)
    host = info.get("host")
    if answer.code == 0 and isinstance(host, dict):
        return _podman(info, host), info
    version = info.get("ServerVersion")
    if answer.code != 0 or not version:
        errors = info.get("ServerErrors")
        said = "\n".join(str(error) for error in errors) if isinstance(errors, list) else ""
        return Answer(answer.code or 1, "", said or answer.err)
    daemon = Daemon(
        version=str(version),
        rootless="name=rootless" in str(info.get("SecurityOptions")),
        cgroup_version=_number(info.get("CgroupVersion")),
        storage_free_bytes=None,
        nvidia=_nvidia_of_docker(info),
        is_podman=False,
        storage_root=_path(info.get("DockerRootDir")),
        limits_memory=_truth(info.get("MemoryLimit")),
        limits_pids=_truth(info.get("PidsLimit")),
    )
    return daemon, info


def look_around(cli: ContainerCli, daemon: Daemon, info: dict[str, object]) -> Daemon:
    """With the free disk and the GPU hook, where the daemon is on this machine."""
    if not _is_here(info):
        return daemon
    free = [_free(daemon.storage_root)]
    if "io.containerd.snapshotter" in str(info.get("DriverStatus")):
        free.append(_free(Path("/var/lib/containerd")))  # where docker 29 keeps images by default
    known = [bytes_ for bytes_ in free if bytes_ is not None]
    nvidia = daemon.nvidia
    if nvidia == "unknown":
        nvidia = _nvidia_of_podman() if daemon.is_podman else _hook(cli)
        # docker 25 to 28.2: where devices are described, and not yet which
        if nvidia != "hook" and _describes_gpus(info.get("CDISpecDirs")):
            nvidia = "cdi"
    return replace(daemon, storage_free_bytes=min(known, default=None), nvidia=nvidia)


def require_nvidia(daemon: Daemon) -> None:
    """Raises RefusedError where GPUs can't be handed to a container."""
    if daemon.nvidia != "none":
        return
    if daemon.is_podman:
        raise RefusedError(
            "podman has no CDI description of the GPUs, so none can be handed to a container",
            "install nvidia-container-toolkit, then: "
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        )
    raise RefusedError(
        "the Docker daemon has no NVIDIA runtime, so it can't hand GPUs to a container",
        "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker; sudo systemctl restart docker; or --on local",
    )


def require_driver(driver_version: str | None, image_cuda: str | None) -> None:
    """Raises RefusedError where the driver is too old for the image. Unknown is not too old."""
    driver, cuda = _numbers(driver_version), _numbers(image_cuda)
    if not driver or not cuda or cuda[0] not in MINIMUM_DRIVERS:
        return
    minimum = MINIMUM_DRIVERS[cuda[0]][0]
    if driver >= _numbers(minimum):
        return
    usable = [major for major, (oldest, _) in MINIMUM_DRIVERS.items() if driver >= _numbers(oldest)]
    other = f", or build the image on CUDA {MINIMUM_DRIVERS[max(usable)][1]}" if usable else ""
    raise RefusedError(
        f"the NVIDIA driver {driver_version} is too old for the image's CUDA {image_cuda}, "
        f"which needs {minimum} or newer",
        f"renew the driver{other}; or --on local",
    )


def require_disk(daemon: Daemon, needed_bytes: int | None, name: str = "docker") -> None:
    """Raises RefusedError where images and containers have too little room. Unknown passes."""
    free = daemon.storage_free_bytes
    needed = max(needed_bytes or 0, FULL_BYTES)
    if free is None or free >= needed:
        return
    raise RefusedError(
        f"the disk of {name}'s images has {format_bytes(free)} free ({daemon.storage_root}), "
        f"and {format_bytes(needed)} are needed",
        f"{name} system df shows what takes it; {name} image prune frees it",
    )


# What the daemon says -----------------------------------------------------------------------


def _last_object(text: str) -> dict[str, object]:
    """The JSON object that `text` is, or ends with (warnings may stand before it); else {}."""
    lines = [line for line in text.splitlines() if line.strip()]
    for candidate in (text, *lines[-1:]):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(candidate)
            if isinstance(found, dict):
                return found
    return {}


def _podman(info: dict[str, object], host: dict[str, object]) -> Daemon:
    version, store, security = info.get("version"), info.get("store"), host.get("security")
    controllers = host.get("cgroupControllers")
    known = controllers if isinstance(controllers, list) else None
    return Daemon(
        version=str(version.get("Version") or "?") if isinstance(version, dict) else "?",
        rootless=isinstance(security, dict) and security.get("rootless") is True,
        cgroup_version=_number(str(host.get("cgroupVersion") or "").removeprefix("v")),
        storage_free_bytes=None,
        nvidia="unknown",
        is_podman=True,
        storage_root=_path(store.get("graphRoot")) if isinstance(store, dict) else None,
        limits_memory=None if known is None else "memory" in known,
        limits_pids=None if known is None else "pids" in known,
    )


def _nvidia_of_docker(info: dict[str, object]) -> Nvidia:
    runtimes = info.get("Runtimes")
    if isinstance(runtimes, dict) and "nvidia" in runtimes:
        return "runtime"
    devices = info.get("DiscoveredDevices")  # docker 28.3 and newer
    if "nvidia.com/gpu" in str(devices):
        return "cdi"
    return "unknown"  # the daemon does not tell whether it found a hook at its start


def _is_here(info: dict[str, object]) -> bool:
    """Whether paths and processes that the daemon speaks of are this machine's.

    By name and kernel: a daemon behind DOCKER_HOST, an SSH context or in a desktop's virtual
    machine has others.
    """
    here = os.uname()
    host = info.get("host")
    if isinstance(host, dict):
        return host.get("serviceIsRemote") is not True and host.get("hostname") == here.nodename
    return info.get("Name") == here.nodename and info.get("KernelVersion") == here.release


def _number(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else None


def _truth(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _path(value: object) -> Path | None:
    return Path(value) if isinstance(value, str) and value.startswith("/") else None


def _numbers(version: str | None) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version or "")
    return tuple(int(part) for part in match[0].split(".")) if match else ()


# What is seen from here ---------------------------------------------------------------------


def _free(path: Path | None) -> int | None:
    try:
        return None if path is None else shutil.disk_usage(path).free
    except OSError:
        return None


def _hook(cli: ContainerCli) -> Nvidia:
    """Whether dockerd, which looks for the hook on its own PATH when it starts, has found one."""
    path = _path_of_daemon(cli)
    if path is not None:
        return "hook" if shutil.which(HOOK, path=path) else "none"
    # its environment is not ours to read: ours, and where packages install to, are a good guess
    # for yes, and none for no
    guess = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
    return "hook" if shutil.which(HOOK, path=guess) else "unknown"


def _path_of_daemon(cli: ContainerCli) -> str | None:
    """PATH in the environment of the dockerd that listens on the client's socket; None where it
    can't be told: not a unix socket, another user's process, a socket that systemd opened.
    """
    answer = cli.ask("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    address = answer.out.strip()
    if answer.code or not address.startswith("unix://"):
        return None
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(2)
            asking.connect(address.removeprefix("unix://"))
            peer = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid = _PEER.unpack(peer)[0]
        process = Path(f"/proc/{pid}")
        if (process / "comm").read_text(errors="replace").strip() != "dockerd":
            return None
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    for entry in environment:
        if entry.startswith(b"PATH="):
            return os.fsdecode(entry.removeprefix(b"PATH="))
    return None


def _nvidia_of_podman() -> Nvidia:
    """podman asks nobody: it reads these folders when a container starts."""
    if _describes_gpus(list(_CDI_FOLDERS)):
        return "cdi"
    for folder in _PODMAN_HOOKS:
        with contextlib.suppress(OSError):
            if any("nvidia" in hook.name for hook in Path(folder).iterdir()):
                return "hook"
    return "none"


def _describes_gpus(folders: object) -> bool:
    """Whether a CDI specification in one of these folders has NVIDIA's GPUs."""
    for folder in folders if isinstance(folders, list) else []:
        with contextlib.suppress(OSError):
            for spec in Path(str(folder)).iterdir():
                if "nvidia.com/gpu" in spec.read_text(encoding="utf-8", errors="replace"):
                    return True
    return False
