"""The command line of a run's container, as a list of words. Pure: values in, values out.

What a dry run prints, what container.json records and what is executed is this one list. It holds
names of variables, never a secret's value. Imports runner.plans.base and runner.jobs only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.jobs.risks import KNOWN_SECRETS
from runner.plans.base import PlannedContainer, PlannedMount

HOME = "/home/runner"
SECRETS = "/run/secrets/runner"
"""Where secrets lie in the container, a file each, named as the variable."""
PASSED_ON = (
    "CUDA_LAUNCH_BLOCKING",
    "HF_DATASETS_OFFLINE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "LANG",
    "LC_ALL",
    "MODELSCOPE_ENDPOINT",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_LOGS",
    "TRANSFORMERS_OFFLINE",
    "TZ",
)
"""Variables that a container gets from its caller, where they are set."""
PASSED_ON_PREFIXES = ("NCCL_", "GLOO_", "TORCH_CUDNN_", "TORCH_NCCL_")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Passed on only with a network; they can hold a password, so by name alone."""
HUB_SECRETS = ("HF_TOKEN", "MODELSCOPE_API_TOKEN")
_REDIRECT = 'exec bash "$2" "${@:3}" >>"$1" 2>&1'
"""The log is written from inside, so that it continues when dockerd dies and loses no last line."""


@dataclass(frozen=True)
class Caller:
    """Who starts the container, as far as the command line depends on it."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups, by which shared data may be readable."""
    name: str = "runner"
    rootless: bool = False
    """Docker's daemon is the caller's own: root in the container is the caller outside."""
    podman: bool = False
    by_cdi: bool = False
    """GPUs are handed out as CDI devices, not by --gpus."""
    limits_gpus: bool = False
    """The host has cgroup v2; without it NVIDIA's hook fails a limited container's start."""
    variables: frozenset[str] = frozenset()
    """Names set in the caller's environment."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Variables that name the caches, with their values: RUNNER_CACHE, HF_HUB_CACHE."""


def run_argv(
    container: PlannedContainer,
    caller: Caller,
    *,
    program: str,
    name: str,
    labels: Mapping[str, str],
    mounts: Iterable[PlannedMount],
    command: Sequence[str],
    workdir: str,
    environment: Mapping[str, str] | None = None,
    gpu_uuids: Sequence[str] = (),
    gpu_limit_bytes: int | None = None,
    id_file: str | None = None,
    secrets_folder: str | None = None,
    interactive: bool = False,
) -> list[str]:
    """The command that runs `command` in the container and ends with its exit code.

    Args:
        program: of this machine; a plan only tells which one there was.
        name: the container's name: letters, digits, "_.-".
        command: words after the image; its first is a program.
        gpu_limit_bytes: asked of the driver (NVIDIA_GPU_MEMORY_LIMIT, in whole MiB); older
            toolkits ignore it, so that what counts is what NVML reads back.
        id_file: where the container's id is written; must not exist.
        secrets_folder: a folder of the host with a file for each secret.
        interactive: pass standard input on.
    """
    with_network = container.network != "none"
    argv = [program, "run", "--rm", "--name", name, "--pull", "never"]
    argv += ["--cidfile", id_file] if id_file else []
    argv += ["--interactive"] if interactive else []
    for key, value in labels.items():
        argv += ["--label", f"{key}={value}"]
    argv += _user(caller)
    argv += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only"]
    for folder in ("/tmp", HOME):  # noqa: S108 - the container's own
        argv += ["--tmpfs", f"{folder}:rw,exec,nosuid,nodev,mode=1777"]
    argv += ["--network", container.network]
    argv += ["--pids-limit", str(container.pids), "--shm-size", f"{container.shm_bytes}b"]
    if container.memory_bytes is not None:
        size = f"{container.memory_bytes}b"
        argv += ["--memory", size, "--memory-swap", size]
    for limit, number in sorted(container.ulimits.items()):
        argv += ["--ulimit", f"{limit}={number}:{number}"]
    argv += _gpus(gpu_uuids, by_cdi=caller.by_cdi)
    values = {
        "HOME": HOME,
        "USER": caller.name,
        "LOGNAME": caller.name,
        **caller.folders,
        **(environment or {}),
    }
    if not gpu_uuids:
        # images for CUDA ask for all GPUs, and get them where NVIDIA's runtime is the default one
        values["NVIDIA_VISIBLE_DEVICES"] = "void"
    if gpu_uuids and gpu_limit_bytes is not None and caller.limits_gpus:
        # the hook looks at neither alone (nvidia-container-toolkit, apply-cuda-memory-limits.go)
        for name_of_limit in ("NVIDIA_GPU_MEMORY_LIMIT", "NVIDIA_GPU_MEMORY_REQUEST"):
            values[name_of_limit] = str(gpu_limit_bytes >> 20)
    for key, value in values.items():
        argv += ["--env", f"{key}={value}"]
    for variable in passed_on(container, caller.variables, with_network=with_network):
        argv += ["--env", variable]
    for mount in mounts:
        argv += ["--mount", mount_text(mount)]
    if secrets_folder is not None:
        secret = PlannedMount(source=secrets_folder, target=SECRETS)
        argv += ["--mount", mount_text(secret)]
    argv += ["--workdir", workdir, "--log-driver", "none"]
    argv += container.arguments
    if not container.native:
        argv += ["--init", "--entrypoint", command[0]]
        return [*argv, container.image_id, *command[1:]]
    return [*argv, container.image_id, *command]


def launch_command(script: Path, log: Path, arguments: Sequence[str] = ()) -> list[str]:
    """The words that run a launch script in a container, its output appended to `log`."""
    return ["bash", "-c", _REDIRECT, "runner", str(log), str(script), *arguments]


def passed_on(
    container: PlannedContainer, present: Iterable[str], *, with_network: bool
) -> list[str]:
    """Names of the caller's variables that the container gets, sorted; secrets are not of them."""
    wanted = {*PASSED_ON, *container.environment, *(PROXIES if with_network else ())}
    return sorted(
        name
        for name in present
        if (name in wanted or name.startswith(PASSED_ON_PREFIXES))
        and name not in secret_names(container)
    )


def secret_names(container: PlannedContainer) -> list[str]:
    """Names of the variables that reach the container as files, where they are set: those that the
    job names, and no others. Known ones go so also where container.environment names them.
    """
    return sorted({*container.secrets, *(set(container.environment) & set(KNOWN_SECRETS))})


def mount_text(mount: PlannedMount) -> str:
    """A mount as --mount takes it: one record of CSV, so that commas and quotes in paths hold."""
    parts = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    if mount.readonly:
        parts.append("readonly")
    # by hand, since csv.writer quotes line breaks only where it is to write some itself
    return ",".join(
        '"' + part.replace('"', '""') + '"' if any(sign in part for sign in '",\r\n') else part
        for part in parts
    )


def _user(caller: Caller) -> list[str]:
    if caller.podman and caller.uid != 0:
        # rootless podman: the caller's own ids inside as outside
        return ["--userns", "keep-id", "--user", f"{caller.uid}:{caller.gid}"]
    if caller.rootless:
        return ["--user", "0:0"]
    argv = ["--user", f"{caller.uid}:{caller.gid}"]
    for group in caller.groups:
        if group != caller.gid:
            argv += ["--group-add", str(group)]
    return argv


def _gpus(uuids: Sequence[str], *, by_cdi: bool) -> list[str]:
    if not uuids:
        return []
    if by_cdi:
        return [word for uuid in uuids for word in ("--device", f"nvidia.com/gpu={uuid}")]
    # compute alone would leave NVML out (torchx#825)
    return ["--gpus", f'"device={",".join(uuids)}","capabilities=compute,utility"']
