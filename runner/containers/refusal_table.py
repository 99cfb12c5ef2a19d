"""What docker and podman say where they start no container, what it means, and the way out.

Data, in the job's words; `refusals` matches it.

Imports nothing but the standard library. The wordings are those of Docker 20.10 to 28 (runc 1.0 to
1.3) and Podman 4 to 5 (crun, runc); tests/containers/test_refusals.py has each with its source.
"""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """One wording. Texts take the pattern's groups as {1}, {2} (all of the match: {0}).

    {ulimit:1} is the group as ulimit(1) names it, {ULIMIT:1} that in capitals, and {field:1} the
    job's field behind an option of `docker run`.
    """

    seen: str
    """A regular expression, searched for in any case."""
    meaning: str
    way_out: str


_INSTALL_TOOLKIT = (
    "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker; "
    "sudo systemctl restart docker; or --on local"
)
_CDI = (
    "describe the GPUs: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml; "
    "nvidia-ctk cdi list shows which there are"
)
_REBOOT = "look at nvidia-smi on this machine; after an update of the driver, reboot"

_ABOVE_DOCKERD = "this host refuses the container's limit '{ulimit:1}': it is above dockerd's own"
_RAISE_DOCKERD = (
    "lower container.ulimits.{ulimit:1}, or drop it; to allow it, raise dockerd's: "
    "Limit{ULIMIT:1}=infinity in its systemd unit"
)

# The first that matches is told, so the narrow stand before the wide.
TABLE: tuple[Refusal, ...] = (
    # The daemon
    Refusal(
        r"cannot connect to the docker daemon|is the docker daemon running",
        "the Docker daemon is not running",
        "sudo systemctl start docker; or --on local",
    ),
    # Limits
    Refusal(r"(?-i:error setting rlimit type (\d+))", _ABOVE_DOCKERD, _RAISE_DOCKERD),
    Refusal(r"(?-i:setrlimit `?RLIMIT_([A-Z]+)`?)", _ABOVE_DOCKERD, _RAISE_DOCKERD),
    Refusal(
        r"(invalid ulimit type: \S+|ulimit soft limit must be [^\n]*?: \d+ > \d+)",
        "container.ulimits: {1}",
        "write container.ulimits as NAME: VALUE, or NAME: SOFT:HARD; names as in ulimit(1): "
        "memlock, nofile, nproc, stack",
    ),
    Refusal(
        r"(minimum memory limit allowed is \w+|unable to set memory limit to [^)]*\)?)",
        "container.memory is too small to start in: {1}",
        "raise container.memory; a training run takes some GiB",
    ),
    Refusal(
        r"minimum memory-?swap limit should be larger",
        "the container's swap limit is below container.memory",
        "raise the one in container.arguments, or drop it: without it no swap is used",
    ),
    Refusal(
        r"(memory\.(?:swap\.)?max\b|memory\.(?:memsw\.)?limit_in_bytes|memory\.swap\.max)"
        r"[^\n]*?(permission denied|invalid argument|device or resource busy|no such file)",
        "the host's cgroups refuse container.memory: {1}: {2}",
        "drop container.memory (the guard still holds the budget), raise it, or have the memory "
        "controller delegated to this user (rootless: loginctl, Delegate=memory)",
    ),
    Refusal(
        r"does not support (?:memory limit|swap limit) capabilit",
        "this kernel keeps no account of containers' memory, so container.memory can't hold",
        "drop container.memory, or boot with cgroup_enable=memory swapaccount=1",
    ),
    Refusal(
        r"(pids\.max|pids limit)[^\n]*?"
        r"(permission denied|invalid argument|not supported|no such file)",
        "the host's cgroups refuse container.pids: {1}: {2}",
        "drop container.pids",
    ),
    Refusal(
        r"(cannot set limits without cgroups|cannot specify resource limits without cgroups v2"
        r"|controller `?\w+`? is not available)",
        "limits can't be set on containers here: {1}",
        "drop container.memory and container.pids; rootless podman sets limits on cgroup v2 with "
        "--cgroup-manager=systemd alone",
    ),
    Refusal(
        r"invalid argument \"(.*?)\" for \"(-[^\"]*)\" flag: (.*?)(?: usage:|$)",
        "{2} does not take {1}: {3}",
        "correct {field:2} in the job",
    ),
    Refusal(
        r"(unable to translate --shm-size|invalid value for memory|invalid size)[^\n]*",
        "{0}",
        "write sizes as 8GiB or 512MiB in container.shm_size and container.memory",
    ),
    # GPUs
    Refusal(
        r"could not select device driver \"cdi\"",
        "this Docker daemon hands out no CDI devices",
        'Docker 25 to 27: "features": {"cdi": true} in /etc/docker/daemon.json, then restart '
        "it; or use NVIDIA's runtime: sudo nvidia-ctk runtime configure --runtime=docker",
    ),
    Refusal(
        r"could not select device driver \"[^\"]*\" with capabilities",
        "the Docker daemon has no NVIDIA runtime, so it can't hand GPUs to a container",
        _INSTALL_TOOLKIT,
    ),
    Refusal(
        r"(unknown or invalid runtime name:? nvidia|unknown runtime specified nvidia"
        r"|OCI runtime \"nvidia\" not found)",
        "the runtime nvidia is not known here",
        _INSTALL_TOOLKIT,
    ),
    Refusal(
        r"nvidia-container-runtime[^\n]*?executable file not found",
        "the Docker daemon is told to use NVIDIA's runtime, which is not installed",
        _INSTALL_TOOLKIT,
    ),
    Refusal(
        r"unresolvable CDI devices? (\S+?)(?:: unknown)?(?:\s|$)",
        "no CDI description has the GPU {1}",
        _CDI,
    ),
    Refusal(
        r"failed to stat CDI host device \"([^\"]*)\"",
        "the CDI description names a device that is gone: {1}",
        _CDI,
    ),
    Refusal(
        r"nvidia-container-cli: requirement error: unsatisfied condition: ([^,:\n]*)",
        "the NVIDIA driver is too old for this image: it wants {1}",
        "renew the driver, or build the image on an older CUDA (runner image build --base)",
    ),
    Refusal(
        r"nvidia-container-cli: device error: ([^:\n]*): unknown device",
        "the GPU {1} is not known to NVIDIA's container tool",
        "nvidia-smi -L lists them; a GPU that fell off the bus needs a reset or a reboot",
    ),
    Refusal(
        r"(driver/library version mismatch)",
        "NVIDIA's driver and its library on this machine are of different versions",
        _REBOOT,
    ),
    Refusal(
        r"nvidia-container-cli: ([^\n]*?)(?:: unknown)?(?:\s*$|\s(?=Run|See))",
        "NVIDIA's container tool failed: {1}",
        _REBOOT,
    ),
    Refusal(
        r"(setting GPU memory limits is only supported in cgroup v2"
        r"|failed to set memory limits for gpu [^\n]*?)(?:: unknown)?$",
        "the driver's memory limit was refused: {1}",
        "take NVIDIA_GPU_MEMORY_LIMIT out; torch's cap and the watchdog hold the budget",
    ),
    # Mounts
    Refusal(
        r"bind source path does not exist: ([^\n]*?)(?:\.? Run|\.? See|$)",
        "what container.mounts wants from the host is not there: {1}",
        "make it, or correct the path; it is looked for on the daemon's machine",
    ),
    Refusal(
        r"^Error: (?:statfs|stat|lstat) ([^\n]*): no such file or directory",
        "what container.mounts wants from the host is not there: {1}",
        "make it, or correct the path",
    ),
    Refusal(
        r"error while creating mount source path '([^']*)': [^\n]*?"
        r"(permission denied|read-only file system|file exists)",
        "the daemon can't reach a folder of container.mounts: {1}: {2}",
        "make the folder before; a daemon from a snap, in a virtual machine or rootless sees only "
        "part of the host's folders",
    ),
    Refusal(
        r"(mount path must be absolute|includes invalid characters for a local volume name"
        r"|invalid volume specification|invalid mount config|duplicate mount point: \S+)",
        "container.mounts can't be used: {1}",
        "write each as HOST_PATH:CONTAINER_PATH[:ro], both absolute, each place once",
    ),
    Refusal(
        r"mounting \"+([^\"]*?)\\*\"+ to rootfs.*?(?:caused:? |: )\\*\"?"
        r"(operation not permitted|permission denied|not a directory|read-only file system"
        r"|no such file or directory)",
        "a mount was refused: {1}: {2}",
        "a mount inside a read-only one needs its folder to exist there; a file goes onto a file, "
        "a folder onto a folder; rootless daemons keep the host's noexec and nosuid",
    ),
    Refusal(
        r"mkdir ([^\n]*?): read-only file system",
        "a mount's place is not in the image, whose root is read-only: {1}",
        "mount it elsewhere, such as under /workspace, or make the folder in the image",
    ),
    # Images, names, disk
    Refusal(
        r"no space left on device",
        "the disk of the container's files is full",
        "docker system df shows what takes it; docker image prune frees it",
    ),
    Refusal(
        r"(?:no such image: (\S+)|(\S+): image not known)",
        "the image is not on this machine: {1}{2}",
        "runner image build, or runner image load FILE; container.image names another",
    ),
    Refusal(
        r"(pull access denied for [^\s,]+|manifest for \S+ not found|manifest unknown"
        r"|requested access to the resource is denied|short-name \S+ did not resolve"
        r"|unauthorized: [^\n]*?)(?=[,.:\s]|$)",
        "the image is not on this machine, and the registry does not give it: {1}",
        "runner image build, or runner image load FILE; container.image names another",
    ),
    Refusal(
        r"(Get \"?https?://[^\s\"]*\"?: [^\n]*?|pinging container registry [^\n]*?)(?= Run| See|$)",
        "the image is not on this machine, and its registry is not reached: {1}",
        "runner image build, or runner image load FILE from a machine that has it",
    ),
    Refusal(
        r"(invalid reference format[^\n]*?)(?= Run| See|$)",
        "container.image is no image's name: {1}",
        "write it as NAME:TAG or NAME@sha256:DIGEST, in lower case",
    ),
    Refusal(
        r"container name \"/?([^\"]*)\" is already in use",
        "a container of the name {1} is there already",
        "runner doctor --fix removes it where it is an orphan of a run; docker rm {1} else",
    ),
    Refusal(
        r"(network \S+ not found|unable to find network with name or ID [^\s:]*)",
        "container.network: {1}",
        "none, host or bridge; docker network ls lists others",
    ),
    # The process
    Refusal(
        r"unable to find (user|group) (\S+?):? ",
        "the image has no {1} {2}",
        "take --user out of container.arguments: the runner gives numbers",
    ),
    Refusal(
        r"exec format error",
        "the image is of another processor architecture, or its program is no program",
        "build the image on this machine: runner image build",
    ),
    Refusal(
        r"exec: \\*\"([^\"\\]*)\\*\": (?:stat [^\n]*?: )?"
        r"(?:no such file or directory|executable file not found)",
        "the image has no program {1}",
        "container.image has to be one that runner image build makes, or has bash and Python",
    ),
    Refusal(
        r"exec: \\*\"([^\"\\]*)\\*\": (permission denied|is a directory)",
        "{1} in the image can't be executed: {2}",
        "a script needs its x bit and a mount without noexec; the caller's uid needs to read it",
    ),
    Refusal(
        r"executable file `?([^`\s]*)`? not found",
        "the image has no program {1}",
        "container.image has to be one that runner image build makes, or has bash and Python",
    ),
    # Security
    Refusal(
        r"unable to apply caps: operation not permitted",
        "this host does not let containers have the capabilities that were asked for",
        "take --privileged and --cap-add out of container.arguments",
    ),
    Refusal(
        r"(apparmor failed to apply profile|opening seccomp profile|decoding seccomp profile"
        r"|seccomp filter into kernel|set apparmor profile)([^\n]*?)"
        r"(?:: unknown\.?|(?= Run '| See '))?$",
        "a security profile was refused: {1}{2}",
        "correct --security-opt in container.arguments; without one, sudo systemctl restart "
        "apparmor docker",
    ),
    Refusal(
        r"unknown (?:shorthand )?flag: ([^\n]*?)(?= usage| run '| see '|$)",
        "this client does not know the option {1}",
        "take it out of container.arguments, or renew docker; podman has other options",
    ),
)
