"""Each way in which a container is not started, in the words of docker, podman and their helpers.

Provoked with a real daemon where that can be done here; else as recorded in the thread that stands
beside it (owner/repository#number on GitHub).
"""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.containers.cli import ContainerCli
from runner.containers.refusals import LONGEST, daemon_lost, discarded, explain_run, last_error
from tests.testbed.docker import Daemon
from tests.testbed.tiny_image import IMAGE, build_tiny

FIELDS = ("image", "memory", "shm_size", "pids", "ulimits", "network", "mounts", "arguments")


@pytest.fixture(scope="module")
def cli(docker_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> ContainerCli:
    build_tiny(docker_daemon.cli, tmp_path_factory.mktemp("tiny"))
    return docker_daemon.cli


def run(cli: ContainerCli, *arguments: str) -> tuple[int, str]:
    network = () if "--network" in arguments else ("--network", "none")
    answer = cli.ask("run", "--rm", *network, *arguments, timeout_seconds=600)
    return answer.code, answer.err


# With the real daemon ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message", "way_out"),
    [
        (["--ulimit", "foo=1", IMAGE], "foo", "container.ulimits"),
        (["--ulimit", "nofile=2048:1024", IMAGE], "2048 > 1024", "container.ulimits"),
        (["--memory", "1k", IMAGE], "container.memory is too small", "container.memory"),
        (["--memory", "12parsecs", IMAGE], "12parsecs", "container.memory"),
        (["--memory", "64m", "--memory-swap", "32m", IMAGE], "swap limit", "container.arguments"),
        (["--shm-size", "0x", IMAGE], "0x", "container.shm_size"),
        (["--pids-limit", "x", IMAGE], "x", "container.pids"),
        (["--mount", "type=bind,src=/nope/x y,dst=/x", IMAGE], "/nope/x y", "make it"),
        (["--mount", "type=bind,src=rel,dst=/x", IMAGE], "container.mounts", "absolute"),
        (["--volume", "/tmp:x", IMAGE], "container.mounts", "absolute"),
        (["--volume", "a b:/x", IMAGE], "container.mounts", "absolute"),
        (["--pull", "never", "runner-test-absent:1"], "runner-test-absent:1", "runner image build"),
        (["Bad//Name"], "container.image is no image's name", "lower case"),
        (["--network", "runner-nope", IMAGE], "runner-nope", "bridge"),
        (["--entrypoint", "/absent", IMAGE], "no program /absent", "container.image"),
        (["--entrypoint", "absent", IMAGE], "no program absent", "container.image"),
        (["--entrypoint", "/etc", IMAGE], "/etc in the image can't be executed", "x bit"),
        (["--nonsense", IMAGE], "--nonsense", "container.arguments"),
        (["-Z", IMAGE], "'Z' in -Z", "container.arguments"),
        (["--security-opt", "seccomp=/nope", IMAGE], "/nope", "container.arguments"),
        (["--user", "nobody", IMAGE], "no user nobody", "container.arguments"),
    ],
)
def test_what_this_daemon_refuses(
    cli: ContainerCli, arguments: list[str], message: str, way_out: str
) -> None:
    if cli.is_podman:
        pytest.skip("the words of docker; podman's are among the recorded ones")
    code, err = run(cli, *arguments)
    told = explain_run(err, code)
    assert told is not None, err
    assert message in told[0] and way_out in told[1], told
    assert "\n" not in told[0] + told[1]


def test_a_limit_above_dockerds_own(cli: ContainerCli) -> None:
    code, err = run(cli, "--ulimit", "memlock=-1", IMAGE, "exit", "0")
    if code == 0:
        pytest.skip("this host refuses no limit")
    told = explain_run(err, code)
    assert told is not None, err
    assert "'memlock'" in told[0] and "container.ulimits.memlock" in told[1]
    assert "LimitMEMLOCK=infinity" in told[1]
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert run(cli, "--ulimit", f"nofile={soft}:{soft}", IMAGE, "exit", "0")[0] == 0


def test_capabilities_that_this_host_does_not_give(cli: ContainerCli) -> None:
    code, err = run(cli, "--privileged", IMAGE, "exit", "0")
    if code == 0:
        pytest.skip("this host allows --privileged")
    told = explain_run(err, code)
    assert told is not None, err
    assert "capabilities" in told[0] and "container.arguments" in told[1]


def test_gpus_without_nvidias_runtime(cli: ContainerCli) -> None:
    for arguments in (["--gpus", "all"], ["--runtime", "nvidia"]):
        code, err = run(cli, *arguments, IMAGE, "exit", "0")
        if code == 0:
            pytest.skip("GPUs can be had here")
        told = explain_run(err, code)
        assert told is not None and "nvidia-container-toolkit" in told[1], err
    code, err = run(cli, "--device", "nvidia.com/gpu=all", IMAGE, "exit", "0")
    told = explain_run(err, code)
    assert told is not None and "cdi" in told[1].lower(), err


def test_a_name_that_is_taken(cli: ContainerCli, tmp_path: Path) -> None:
    name = f"runner-test-{tmp_path.parent.name}-name"
    cli.require("create", "--name", name, IMAGE)
    try:
        code, err = run(cli, "--name", name, IMAGE)
    finally:
        cli.require("rm", "--force", name)
    told = explain_run(err, code)
    assert told is not None and f"of the name {name} " in told[0] and f"rm {name}" in told[1]


@pytest.mark.parametrize("code", [0, 1, 3, 124, 125, 126, 127, 128, 137])
def test_the_programs_own_end_is_not_explained(cli: ContainerCli, code: int) -> None:
    ended, err = run(cli, IMAGE, "exit", str(code))
    assert ended == code and explain_run(err, ended) is None


def test_a_registry_that_is_not_reached(cli: ContainerCli) -> None:
    # a port of loopback that nobody listens on: no network is needed for this refusal
    code, err = run(cli, "--pull", "always", "127.0.0.1:1/runner/absent:1")
    told = explain_run(err, code)
    assert told is not None and "not reached" in told[0] and "runner image load" in told[1], err


# As recorded ------------------------------------------------------------------------------------

SHIM = (
    "docker: Error response from daemon: failed to create shim task: OCI runtime create failed: "
    "runc create failed: unable to start container process: "
)
TASK = SHIM.replace(
    "failed to create shim", "failed to create task for container: failed to create shim"
)
HELP = "\n\nRun 'docker run --help' for more information\n"
LEGACY = TASK + (
    "error during container init: error running prestart hook #0: exit status 1, stdout: , stderr: "
    "Auto-detected mode as 'legacy'\n"
)

RECORDED = [
    # Limits. ernestwisniewski/kbin#8, containerd/nerdctl#1937, and dockerd 20.10.24 here
    (
        125,
        SHIM + "error during container init: error setting rlimits for ready process: "
        "error setting rlimit type 8: operation not permitted: unknown" + HELP,
        "memlock",
        "container.ulimits.memlock",
    ),
    # nestybox/sysbox#351: runc 1.0
    (
        125,
        "docker: Error response from daemon: OCI runtime create failed: container_linux.go:393: "
        "starting container process caused: process_linux.go:607: container init caused: "
        "process_linux.go:465: setting rlimits for ready process caused: error setting rlimit "
        "type 7: operation not permitted: unknown.\nSee 'docker run --help'.",
        "nofile",
        "container.ulimits.nofile",
    ),
    # podman 4.3.1 with runc, here
    (
        126,
        "Error: runc: runc create failed: unable to start container process: error during "
        "container init: error setting rlimits for ready process: error setting rlimit type 6: "
        "operation not permitted: OCI permission denied\n",
        "nproc",
        "container.ulimits.nproc",
    ),
    # crun's src/libcrun/utils.c
    (
        126,
        "Error: OCI runtime error: crun: setrlimit `RLIMIT_MEMLOCK`: Operation not permitted\n",
        "memlock",
        "container.ulimits.memlock",
    ),
    (
        125,
        'Error: ulimit option "foo=1" requires name=SOFT:HARD, failed to be parsed: '
        "invalid ulimit type: foo\n",  # podman 4.3.1, here
        "foo",
        "container.ulimits",
    ),
    # coreos/bugs#2551
    (
        125,
        "docker: Error response from daemon: OCI runtime create failed: container_linux.go:348: "
        'starting container process caused "process_linux.go:402: container init caused '
        '\\"process_linux.go:367: setting cgroup config for procHooks process caused '
        '\\\\\\"failed to write 10485760 to memory.limit_in_bytes: write /sys/fs/cgroup/memory/'
        'docker/aa95/memory.limit_in_bytes: device or resource busy\\\\\\"\\"": unknown.',
        "device or resource busy",
        "container.memory",
    ),
    # containers/crun#489, podman#8330
    (
        126,
        "Error: opening file `memory.swap.max` for writing: Permission denied: OCI runtime "
        "permission denied error\n",
        "memory.swap.max: Permission denied",
        "container.memory",
    ),
    # podman on a Raspberry Pi: the kernel is started without the memory controller
    (
        127,
        "Error: crun: opening file `memory.max` for writing: No such file or directory: OCI "
        "runtime attempted to invoke a command that was not found\n",
        "memory.max: No such file",
        "container.memory",
    ),
    # podman 4.3.1 with runc, here
    (
        126,
        "Error: OCI runtime error: runc: runc create failed: unable to start container process: "
        "error during container init: error setting cgroup config for procHooks process: unable to "
        "set memory limit to 1024 (current usage: 2719744, peak usage: 3018752)\n",
        "container.memory is too small",
        "container.memory",
    ),
    # podman-container-tools/podman#6834 and #6368
    (
        126,
        "Error: cannot set limits without cgroups: OCI runtime error\n",
        "limits can't be set",
        "container.pids",
    ),
    (
        125,
        "Error: invalid configuration, cannot specify resource limits without cgroups v2 and "
        "--cgroup-manager=systemd\n",
        "limits can't be set",
        "container.memory",
    ),
    (
        125,
        "Error: unable to translate --shm-size: invalid size: '0x'\n",  # podman 4.3.1, here
        "0x",
        "container.shm_size",
    ),
    # GPUs. NVIDIA/nvidia-docker#1352, hiyouga/LlamaFactory#5268, infiniflow/ragflow#9573
    (
        125,
        'docker: Error response from daemon: could not select device driver "" with capabilities: '
        "[[gpu]].\nERRO[0000] error waiting for container:  \n",
        "no NVIDIA runtime",
        "nvidia-container-toolkit",
    ),
    (
        125,
        'docker: Error response from daemon: could not select device driver "nvidia" with '
        "capabilities: [[gpu]]\n",
        "no NVIDIA runtime",
        "nvidia-container-toolkit",
    ),
    # NVIDIA/nvidia-container-toolkit#434
    (
        125,
        'docker: Error response from daemon: could not select device driver "cdi" with '
        "capabilities: [].\nERRO[0000] error waiting for container: context canceled \n",
        "no CDI devices",
        '"cdi": true',
    ),
    (
        125,
        "docker: Error response from daemon: failed to create task for container: failed to create "
        "shim task: OCI runtime create failed: could not apply required modification to OCI "
        "specification: error modifying OCI spec: failed to inject CDI devices: unresolvable CDI "
        "devices nvidia.com/gpu=all: unknown.\n",
        "the GPU nvidia.com/gpu=all",
        "nvidia-ctk cdi generate",
    ),
    # devnen/Chatterbox-TTS-Server#5 (Docker 28), NVIDIA/nvidia-container-toolkit#146 (podman)
    (
        125,
        "docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices "
        "nvidia.com/gpu=GPU-9" + HELP,
        "the GPU nvidia.com/gpu=GPU-9",
        "nvidia-ctk cdi",
    ),
    (
        126,
        "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all\n",
        "the GPU nvidia.com/gpu=all",
        "nvidia-ctk cdi",
    ),
    # NVIDIA/nvidia-container-toolkit#885
    (
        126,
        "Error: setting up CDI devices: failed to inject devices: failed to stat CDI host device "
        '"/dev/dri/renderD129": no such file or directory\n',
        "/dev/dri/renderD129",
        "nvidia-ctk cdi generate",
    ),
    # SyneRBI/PETRIC2#27, theroyallab/tabbyAPI#324
    (
        125,
        LEGACY
        + "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please "
        "update your driver to a newer version, or use an earlier cuda container: unknown" + HELP,
        "it wants cuda>=12.8",
        "renew the driver",
    ),
    # NVIDIA/nvidia-docker#1283
    (
        125,
        "docker: Error response from daemon: OCI runtime create failed: container_linux.go:349: "
        'starting container process caused "process_linux.go:449: container init caused '
        '\\"process_linux.go:432: running prestart hook 0 caused \\\\\\"error running hook: exit '
        "status 1, stdout: , stderr: nvidia-container-cli: device error: 1: unknown device"
        '\\\\\\\\n\\\\\\"\\"": unknown.\nERRO[0001] error waiting for container: canceled\n',
        "the GPU 1 ",
        "nvidia-smi -L",
    ),
    # labdao/plex#18, NVIDIA/nvidia-container-toolkit#394
    (
        125,
        LEGACY + "nvidia-container-cli: initialization error: nvml error: driver/library version "
        "mismatch: unknown.\nERRO[0000] error waiting for container: context canceled \n",
        "different versions",
        "reboot",
    ),
    # HonuRobotics/dockwater#10, NVIDIA/nvidia-docker#1393
    (
        125,
        LEGACY
        + "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown"
        + HELP,
        "driver not loaded",
        "nvidia-smi",
    ),
    # NVIDIA/nvidia-docker#1190
    (
        125,
        "docker: Error response from daemon: OCI runtime create failed: unable to retrieve OCI "
        'runtime error exec: "nvidia-container-runtime": executable file not found in $PATH: : '
        "unknown.\n",
        "not installed",
        "nvidia-container-toolkit",
    ),
    # nvidia-container-toolkit 1.20, cmd/nvidia-cdi-hook/apply-cuda-memory-limits
    (
        125,
        TASK + "error during container init: error running createRuntime hook #0: exit status 1, "
        "stdout: , stderr: setting GPU memory limits is only supported in cgroup v2: unknown"
        + HELP,
        "only supported in cgroup v2",
        "NVIDIA_GPU_MEMORY_LIMIT",
    ),
    # Mounts. docker/docs#13503, moby/moby#42727, oblien/openship#372
    (
        125,
        "docker: Error response from daemon: error while creating mount source path "
        "'/data/wangjl': mkdir /data: read-only file system.\nSee 'docker run --help'.\n",
        "/data/wangjl: read-only file system",
        "snap",
    ),
    (
        125,
        "docker: Error response from daemon: error while creating mount source path "
        "'/var/lib/x/sites': mkdir /var/lib/x: permission denied\n",
        "/var/lib/x/sites: permission denied",
        "make the folder",
    ),
    (125, "Error: statfs /nope/x y: no such file or directory\n", "/nope/x y", "make it"),
    # moby/moby#42230
    (
        125,
        "docker: Error response from daemon: OCI runtime create failed: container_linux.go:367: "
        "starting container process caused: process_linux.go:520: container init caused: "
        'rootfs_linux.go:60: mounting "/tmp/foo" to rootfs at "/home/suda/merged/mnt" caused: '
        "operation not permitted: unknown.\n",
        "/tmp/foo: operation not permitted",
        "rootless",
    ),
    # opencontainers/runc#1670
    (
        125,
        "docker: Error response from daemon: OCI runtime create failed: container_linux.go:262: "
        'starting container process caused "process_linux.go:339: container init caused '
        '\\"rootfs_linux.go:57: mounting \\\\\\"/var/tmp/olifre\\\\\\" to rootfs '
        '\\\\\\"/ubuntu_ro\\\\\\" at \\\\\\"/ubuntu_ro/beegfs\\\\\\" caused '
        '\\\\\\"mkdir /ubuntu_ro/beegfs: read-only file system\\\\\\"\\"": unknown.\n',
        "whose root is read-only: /ubuntu_ro/beegfs",
        "make the folder in the image",
    ),
    # Images. moby/moby#36915
    (
        125,
        "Unable to find image 'ndtar:latest' locally\ndocker: Error response from daemon: pull "
        "access denied for ndtar, repository does not exist or may require 'docker login'.\n"
        "See 'docker run --help'.\n",
        "pull access denied for ndtar",
        "runner image build",
    ),
    (
        125,
        "Unable to find image 'e4-absent:1' locally\n"
        'docker: Error response from daemon: Get "https://registry-1.docker.io/v2/": dial tcp: '
        "lookup registry-1.docker.io on 10.255.255.53:53: no such host" + HELP,
        "no such host",
        "runner image load",
    ),
    (125, "Error: e4-absent:1: image not known\n", "e4-absent:1", "runner image build"),
    (
        125,
        'Error: short-name "e4-absent:1" did not resolve to an alias and no unqualified-search '
        'registries are defined in "/etc/containers/registries.conf"\n',
        "e4-absent:1",
        "runner image build",
    ),
    # podman 4.3.1, here
    (
        125,
        'Error: creating container storage: the container name "e4-n" is already in use by 1365e2. '
        "You have to remove that container to be able to reuse that name: that name is already in "
        "use\n",
        "of the name e4-n ",
        "--fix",
    ),
    (
        127,
        'Error: runc: runc create failed: unable to start container process: exec: "/absent": stat '
        "/absent: no such file or directory: OCI runtime attempted to invoke a command that was "
        "not found\n",
        "no program /absent",
        "container.image",
    ),
    # NVIDIA/nvidia-container-runtime#190
    (
        127,
        "Error: crun: executable file `nvidia-smi` not found in $PATH: No such file or directory: "
        "OCI runtime attempted to invoke a command that was not found\n",
        "no program nvidia-smi",
        "container.image",
    ),
    # moby/moby#24559 (no more cgroups), and a full disk
    (
        125,
        "docker: Error response from daemon: mkdir /var/lib/docker/overlay2/ab-init: no space left "
        "on device.\n",
        "disk",
        "system df",
    ),
    # docker/for-linux#1129, opencontainers/runc#3831
    (
        125,
        SHIM + "error during container init: unable to apply apparmor profile: apparmor failed to "
        "apply profile: write /proc/self/attr/apparmor/exec: no such file or directory: unknown"
        + HELP,
        "apparmor failed to apply profile",
        "--security-opt",
    ),
    (
        125,
        "Error: unknown flag: --nonsense\nSee 'podman run --help'\n",
        "option --nonsense",
        "container.arguments",
    ),
    # a program's last words, with a code of its own: NVIDIA/nvidia-docker#1730 and vram.md
    (
        255,
        "Failed to initialize NVML: Unknown Error\n",
        "the GPU was taken from the container",
        "daemon-reload",
    ),
]


@pytest.mark.parametrize(
    ("code", "err", "message", "way_out"), RECORDED, ids=[str(n) for n in range(len(RECORDED))]
)
def test_recorded_refusals(code: int, err: str, message: str, way_out: str) -> None:
    told = explain_run(err, code)
    assert told is not None
    assert message in told[0], told
    assert way_out in told[1], told
    assert "\n" not in told[0] + told[1] and "{" not in told[0]


def test_a_daemon_that_was_killed_is_not_the_containers_end() -> None:
    # docker 28.2.2's client, when its dockerd 20.10.24 was ended by kill -9
    err = (
        'step 1\ntime="2026-11-25" level=error msg="error waiting for container: unexpected EOF"\n'
    )
    assert daemon_lost(err, 125) and not daemon_lost(err, 1)
    told = explain_run(err, 125)
    assert told is not None and "may still run" in told[0]
    # an older client says so after each refusal too: NVIDIA/nvidia-container-toolkit#434
    refused = "docker: Error response from daemon: no.\nERRO[0000] error waiting for container: x\n"
    assert not daemon_lost(refused, 125)


def test_progress_and_help_are_not_the_message() -> None:
    err = "Unable to find image 'x' locally\nx: Pulling\ndocker: no.\nSee 'docker run --help'.\n"
    assert last_error(err) == "docker: no."
    assert last_error("Traceback (most recent call last):\n  line\n") == ""


@pytest.mark.parametrize(
    "err",
    [
        "bash: no-such-command: command not found\n",
        "OSError: [Errno 28] No space left on device\n",  # the trainer's, judged elsewhere
        "a line that says no such image: x\n",
        "",
    ],
)
def test_what_a_program_says_is_not_taken_for_dockers(err: str) -> None:
    assert explain_run(err, 127) is None


def test_settings_that_are_ignored_are_found() -> None:
    # moby daemon_unix.go; amp#1553 for swap
    swap = (
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
        "Memory limited without swap."
    )
    pids = (
        "Your kernel does not support pids limit capabilities or the cgroup is not mounted. "
        "PIDs limit discarded."
    )
    assert discarded(f"WARNING: {swap}\nrunning\nWARNING: {pids}\n") == (swap, pids)
    assert discarded("WARNING: something else\n") == ()


@given(st.text(), st.integers(0, 255))
def test_any_text_is_explained_or_not(err: str, code: int) -> None:
    for text in (err, f"docker: {err}", f"Error: {err}"):
        told = explain_run(text, code)
        assert told is None or (told[0] and told[1])


@given(st.lists(st.sampled_from([*"\\\"': \n,.{1}", "docker: ", *(e[1] for e in RECORDED)])))
def test_pieces_of_real_messages_never_raise(pieces: list[str]) -> None:
    assert len(last_error("".join(pieces))) <= LONGEST
    explain_run("".join(pieces), 125)


def test_an_endless_message_is_judged_at_once() -> None:
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n"
        "from runner.containers.refusals import explain_run, discarded\n"
        "pieces = ('mounting \"', 'exec: \\\\\\\\', 'memory.max ', 'Get \"https://', ': ', '\\n')\n"
        "for piece in pieces:\n"
        "    explain_run('docker: ' + piece * 200_000, 125)\n"
        "    discarded(piece * 20_000)\n"
    )
    subprocess.run(["python3", "-c", program], check=True)
