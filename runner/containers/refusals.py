"""Explain a failed `docker run` or `podman run`: from its wording to a job's field and advice.

Pure: text in, text out; standard library only. The wordings are those of Docker 20.10 to 28 (runc
1.0 to 1.3) and Podman 4 to 5 (crun, runc); tests/container/test_refusals.py has each with its
source.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# setrlimit(2) numbers on Linux (asm-generic/resource.h), by the names that --ulimit takes
_RLIMITS = (
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
)
_FLAGS = {
    "--ulimit": "container.ulimits",
    "--memory": "container.memory",
    "--memory-swap": "container.memory",
    "--shm-size": "container.shm_size",
    "--pids-limit": "container.pids",
    "--network": "container.network",
    "--net": "container.network",
    "--mount": "container.mounts",
    "--volume": "container.mounts",
}
LONGEST = 4000  # letters of a message that are looked at; nothing bounds what a hook prints
_OWN = (125, 126, 127)
"""The codes with which docker and podman say that they failed themselves."""


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    told: Callable[[re.Match[str]], tuple[str, str]]


def explain_run(stderr: str, exit_code: int) -> tuple[str, str] | None:
    """What is wrong and what to do, for a container that was not started; None where the code is
    the container's own, or the words are not known.

    A program in the container may end with 125 to 127 too: only what docker or podman themselves
    are known to say is taken for theirs.
    """
    lost = re.search(r"failed to initialize nvml: ([^\n]*)\s*$", stderr[-LONGEST:], re.IGNORECASE)
    if lost and exit_code and "mismatch" not in lost[1].lower():
        return (  # a program's last words, with a code of its own
            f"the GPU was taken from the container: NVML: {lost[1].strip()}",
            "a systemctl daemon-reload does that under systemd cgroups; start the run again. "
            "With nvidia-container-toolkit 1.18 or newer and NVIDIA's runtime it does not happen",
        )
    if exit_code not in _OWN:
        return None
    if daemon_lost(stderr, exit_code):
        return (
            "the daemon went away while the container ran; the container may still run",
            "once the daemon is back, runner doctor --fix ends what runs without a supervisor",
        )
    said = last_error(stderr)
    for rule in _RULES:
        match = rule.pattern.search(said)
        if match:
            return rule.told(match)
    return None


def daemon_lost(stderr: str, exit_code: int) -> bool:
    """Whether an attached client ended because dockerd did: 125 then says nothing of the container,
    whose processes run on under their shim (seen with kill -9 of dockerd 20.10, client 28.2).
    """
    lost = "error waiting for container: " in stderr
    return exit_code == 125 and lost and not last_error(stderr)


def last_error(stderr: str) -> str:
    """The client's own message in one line: without usage, pull progress and hints for help.

    Empty where nothing in `stderr` is docker's or podman's: then what is there is the program's.
    """
    lines = [line.strip() for line in stderr.splitlines()]
    for number in range(len(lines) - 1, -1, -1):
        if re.match(
            r"(?i)(docker|error|invalid argument|unknown (shorthand )?flag)\b", lines[number]
        ):
            rest = [
                line
                for line in lines[number:]
                if line and not re.match(r"See '|Run '|Usage:|ERRO\[|time=", line)
            ]
            return " ".join(rest)[:LONGEST]
    return ""


def discarded(stderr: str) -> tuple[str, ...]:
    """Settings that the daemon said it ignores, while it starts the container all the same.

    Docker warns "Your kernel does not support ... discarded" where the cgroup controller is not
    there: the limit that was asked for does not hold.
    """
    lines = (
        re.sub(r"^(WARNING:|time=.*? msg=)\s*", "", line.strip()) for line in stderr.splitlines()
    )
    return tuple(
        line
        for line in lines
        if re.search(r"(?i)does not support.*(discarded|without swap|ignored)", line)
    )


def _field(flag: str) -> str:
    """The job's field behind an option of `docker run`, such as "-m, --memory"."""
    names = [name for name in re.findall(r"--[a-z-]+", flag) if name in _FLAGS]
    return _FLAGS[names[0]] if names else "container.arguments"


def _ulimit(name: str) -> tuple[str, str]:
    return (
        f"this host refuses the container's limit {name!r}: it is above dockerd's own",
        f"lower container.ulimits.{name}, or drop it; to allow it, raise dockerd's: "
        f"Limit{name.upper()}=infinity in its systemd unit",
    )


def _rlimit_number(match: re.Match[str]) -> tuple[str, str]:
    number = int(match[1])
    return _ulimit(_RLIMITS[number] if number < len(_RLIMITS) else match[1])


def _quoted(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def _rule(pattern: str, message: str, hint: str | Callable[[re.Match[str]], str]) -> _Rule:
    """A rule whose message has the pattern's groups as {1}, {2}."""

    def told(match: re.Match[str]) -> tuple[str, str]:
        groups = [_quoted(group or "") for group in (match[0], *match.groups())]
        way_out = hint(match) if callable(hint) else _fill(hint, groups)
        return _fill(message, groups), way_out

    return _Rule(re.compile(pattern, re.IGNORECASE), told)


def _fill(text: str, groups: list[str]) -> str:
    # not str.format: what docker said may have braces
    return re.sub(r"\{(\d)\}", lambda place: groups[int(place[1])], text)


_INSTALL_TOOLKIT = (
    "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker; "
    "sudo systemctl restart docker; or --on local"
)
_CDI = (
    "describe the GPUs: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml; "
    "nvidia-ctk cdi list shows which there are"
)
_REBOOT = "look at nvidia-smi on this machine; after an update of the driver, reboot"

# The first that matches is told, so the narrow stand before the wide.
_RULES: tuple[_Rule, ...] = (
    # The daemon
    _rule(
        r"cannot connect to the docker daemon|is the docker daemon running",
        "the Docker daemon is not running",
        "sudo systemctl start docker; or --on local",
    ),
    # Limits
    _Rule(re.compile(r"error setting rlimit type (\d+)"), _rlimit_number),
    _Rule(re.compile(r"setrlimit `?RLIMIT_([A-Z]+)`?"), lambda match: _ulimit(match[1].lower())),
    _rule(
        r"(invalid ulimit type: \S+|ulimit soft limit must be [^\n]*?: \d+ > \d+)",
        "container.ulimits: {1}",
        "write container.ulimits as NAME: VALUE, or NAME: SOFT:HARD; names as in ulimit(1): "
        "memlock, nofile, nproc, stack",
    ),
    _rule(
        r"(minimum memory limit allowed is \w+|unable to set memory limit to [^)]*\)?)",
        "container.memory is too small to start in: {1}",
        "raise container.memory; a training run takes some GiB",
    ),
    _rule(
        r"minimum memory-?swap limit should be larger",
        "the container's swap limit is below container.memory",
        "raise the one in container.arguments, or drop it: without it no swap is used",
    ),
    _rule(
        r"(memory\.(?:swap\.)?max\b|memory\.(?:memsw\.)?limit_in_bytes|memory\.swap\.max)"
        r"[^\n]*?(permission denied|invalid argument|device or resource busy|no such file)",
        "the host's cgroups refuse container.memory: {1}: {2}",
        "drop container.memory (the guard still holds the budget), raise it, or have the memory "
        "controller delegated to this user (rootless: loginctl, Delegate=memory)",
    ),
    _rule(
        r"does not support (?:memory limit|swap limit) capabilit",
        "this kernel keeps no account of containers' memory, so container.memory can't hold",
        "drop container.memory, or boot with cgroup_enable=memory swapaccount=1",
    ),
    _rule(
        r"(pids\.max|pids limit)[^\n]*?"
        r"(permission denied|invalid argument|not supported|no such file)",
        "the host's cgroups refuse container.pids: {1}: {2}",
        "drop container.pids",
    ),
    _rule(
        r"(cannot set limits without cgroups|cannot specify resource limits without cgroups v2"
        r"|controller `?\w+`? is not available)",
        "limits can't be set on containers here: {1}",
        "drop container.memory and container.pids; rootless podman sets limits on cgroup v2 with "
        "--cgroup-manager=systemd alone",
    ),
    _rule(
        r"invalid argument \"(.*?)\" for \"(-[^\"]*)\" flag: (.*?)(?: usage:|$)",
        "{2} does not take {1}: {3}",
        lambda match: f"correct {_field(match[2])} in the job",
    ),
    _rule(
        r"(unable to translate --shm-size|invalid value for memory|invalid size)[^\n]*",
        "{0}",
        "write sizes as 8GiB or 512MiB in container.shm_size and container.memory",
    ),
    # GPUs
    _rule(
        r"could not select device driver \"cdi\"",
        "this Docker daemon hands out no CDI devices",
        'Docker 25 to 27: "features": {"cdi": true} in /etc/docker/daemon.json, then restart '
        "it; or use NVIDIA's runtime: sudo nvidia-ctk runtime configure --runtime=docker",
    ),
    _rule(
        r"could not select device driver \"[^\"]*\" with capabilities",
        "the Docker daemon has no NVIDIA runtime, so it can't hand GPUs to a container",
        _INSTALL_TOOLKIT,
    ),
    _rule(
        r"(unknown or invalid runtime name:? nvidia|unknown runtime specified nvidia"
        r"|OCI runtime \"nvidia\" not found)",
        "the runtime nvidia is not known here",
        _INSTALL_TOOLKIT,
    ),
    _rule(
        r"nvidia-container-runtime[^\n]*?executable file not found",
        "the Docker daemon is told to use NVIDIA's runtime, which is not installed",
        _INSTALL_TOOLKIT,
    ),
    _rule(
        r"unresolvable CDI devices? (\S+?)(?:: unknown)?(?:\s|$)",
        "no CDI description has the GPU {1}",
        _CDI,
    ),
    _rule(
        r"failed to stat CDI host device \"([^\"]*)\"",
        "the CDI description names a device that is gone: {1}",
        _CDI,
    ),
    _rule(
        r"nvidia-container-cli: requirement error: unsatisfied condition: ([^,:\n]*)",
        "the NVIDIA driver is too old for this image: it wants {1}",
        "renew the driver, or build the image on an older CUDA (runner image build --base)",
    ),
    _rule(
        r"nvidia-container-cli: device error: ([^:\n]*): unknown device",
        "the GPU {1} is not known to NVIDIA's container tool",
        "nvidia-smi -L lists them; a GPU that fell off the bus needs a reset or a reboot",
    ),
    _rule(
        r"(driver/library version mismatch)",
        "NVIDIA's driver and its library on this machine are of different versions",
        _REBOOT,
    ),
    _rule(
        r"nvidia-container-cli: ([^\n]*?)(?:: unknown)?(?:\s*$|\s(?=Run|See))",
        "NVIDIA's container tool failed: {1}",
        _REBOOT,
    ),
    _rule(
        r"(setting GPU memory limits is only supported in cgroup v2"
        r"|failed to set memory limits for gpu [^\n]*?)(?:: unknown)?$",
        "the driver's memory limit was refused: {1}",
        "take NVIDIA_GPU_MEMORY_LIMIT out; torch's cap and the watchdog hold the budget",
    ),
    # Mounts
    _rule(
        r"bind source path does not exist: ([^\n]*?)(?:\.? Run|\.? See|$)",
        "what container.mounts wants from the host is not there: {1}",
        "make it, or correct the path; it is looked for on the daemon's machine",
    ),
    _rule(
        r"^Error: (?:statfs|stat|lstat) ([^\n]*): no such file or directory",
        "what container.mounts wants from the host is not there: {1}",
        "make it, or correct the path",
    ),
    _rule(
        r"error while creating mount source path '([^']*)': [^\n]*?"
        r"(permission denied|read-only file system|file exists)",
        "the daemon can't reach a folder of container.mounts: {1}: {2}",
        "make the folder before; a daemon from a snap, in a virtual machine or rootless sees only "
        "part of the host's folders",
    ),
    _rule(
        r"(mount path must be absolute|includes invalid characters for a local volume name"
        r"|invalid volume specification|invalid mount config|duplicate mount point: \S+)",
        "container.mounts can't be used: {1}",
        "write each as HOST_PATH:CONTAINER_PATH[:ro], both absolute, each place once",
    ),
    _rule(
        r"mounting \"+([^\"]*?)\\*\"+ to rootfs.*?(?:caused:? |: )\\*\"?"
        r"(operation not permitted|permission denied|not a directory|read-only file system"
        r"|no such file or directory)",
        "a mount was refused: {1}: {2}",
        "a mount inside a read-only one needs its folder to exist there; a file goes onto a file, "
        "a folder onto a folder; rootless daemons keep the host's noexec and nosuid",
    ),
    _rule(
        r"mkdir ([^\n]*?): read-only file system",
        "a mount's place is not in the image, whose root is read-only: {1}",
        "mount it elsewhere, such as under /workspace, or make the folder in the image",
    ),
    # Images, names, disk
    _rule(
        r"no space left on device",
        "the disk of the container's files is full",
        "docker system df shows what takes it; docker image prune frees it",
    ),
    _rule(
        r"(?:no such image: (\S+)|(\S+): image not known)",
        "the image is not on this machine: {1}{2}",
        "runner image build, or runner image load FILE; container.image names another",
    ),
    _rule(
        r"(pull access denied for [^\s,]+|manifest for \S+ not found|manifest unknown"
        r"|requested access to the resource is denied|short-name \S+ did not resolve"
        r"|unauthorized: [^\n]*?)(?=[,.:\s]|$)",
        "the image is not on this machine, and the registry does not give it: {1}",
        "runner image build, or runner image load FILE; container.image names another",
    ),
    _rule(
        r"(Get \"?https?://[^\s\"]*\"?: [^\n]*?|pinging container registry [^\n]*?)(?= Run| See|$)",
        "the image is not on this machine, and its registry is not reached: {1}",
        "runner image build, or runner image load FILE from a machine that has it",
    ),
    _rule(
        r"(invalid reference format[^\n]*?)(?= Run| See|$)",
        "container.image is no image's name: {1}",
        "write it as NAME:TAG or NAME@sha256:DIGEST, in lower case",
    ),
    _rule(
        r"container name \"/?([^\"]*)\" is already in use",
        "a container of the name {1} is there already",
        "runner doctor --fix removes it where it is an orphan of a run; docker rm {1} else",
    ),
    _rule(
        r"(network \S+ not found|unable to find network with name or ID [^\s:]*)",
        "container.network: {1}",
        "none, host or bridge; docker network ls lists others",
    ),
    # The process
    _rule(
        r"unable to find (user|group) (\S+?):? ",
        "the image has no {1} {2}",
        "take --user out of container.arguments: the runner gives numbers",
    ),
    _rule(
        r"exec format error",
        "the image is of another processor architecture, or its program is no program",
        "build the image on this machine: runner image build",
    ),
    _rule(
        r"exec: \\*\"([^\"\\]*)\\*\": (?:stat [^\n]*?: )?"
        r"(?:no such file or directory|executable file not found)",
        "the image has no program {1}",
        "container.image has to be one that runner image build makes, or has bash and Python",
    ),
    _rule(
        r"exec: \\*\"([^\"\\]*)\\*\": (permission denied|is a directory)",
        "{1} in the image can't be executed: {2}",
        "a script needs its x bit and a mount without noexec; the caller's uid needs to read it",
    ),
    _rule(
        r"executable file `?([^`\s]*)`? not found",
        "the image has no program {1}",
        "container.image has to be one that runner image build makes, or has bash and Python",
    ),
    # Security
    _rule(
        r"unable to apply caps: operation not permitted",
        "this host does not let containers have the capabilities that were asked for",
        "take --privileged and --cap-add out of container.arguments",
    ),
    _rule(
        r"(apparmor failed to apply profile|opening seccomp profile|decoding seccomp profile"
        r"|seccomp filter into kernel|set apparmor profile)([^\n]*?)"
        r"(?:: unknown\.?|(?= Run '| See '))?$",
        "a security profile was refused: {1}{2}",
        "correct --security-opt in container.arguments; without one, sudo systemctl restart "
        "apparmor docker",
    ),
    _rule(
        r"unknown (?:shorthand )?flag: ([^\n]*?)(?= usage| run '| see '|$)",
        "this client does not know the option {1}",
        "take it out of container.arguments, or renew docker; podman has other options",
    ),
)
