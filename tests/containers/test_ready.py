"""What is asked of a daemon before anything starts: the real one, and what others answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.common.errors import RefusedError
from runner.common.units import GIB
from runner.containers import ready
from runner.containers.cli import Answer, ContainerCli
from runner.containers.ready import Daemon, require_ready
from tests.testbed.docker import Daemon as RealDaemon
from tests.testbed.docker import make_bridge

HERE = os.uname()


def docker_info(**changes: Any) -> dict[str, Any]:
    """Of `docker info --format '{{json .}}'`, Docker 20.10.24, what is read of it."""
    return {
        "ServerVersion": "20.10.24+dfsg1",
        "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
        "SecurityOptions": ["name=seccomp,profile=default"],
        "CgroupVersion": "2",
        "DockerRootDir": "/",
        "MemoryLimit": True,
        "PidsLimit": True,
        "Name": HERE.nodename,
        "KernelVersion": HERE.release,
        **changes,
    }


def podman_info(**host: Any) -> dict[str, Any]:
    """Of `podman info --format json`, Podman 4.3.1, what is read of it."""
    return {
        "host": {
            "cgroupVersion": "v2",
            "cgroupControllers": ["memory", "pids"],
            "hostname": HERE.nodename,
            "security": {"rootless": True},
            "serviceIsRemote": False,
            **host,
        },
        "store": {"graphRoot": "/"},
        "version": {"Version": "4.3.1"},
    }


def client(folder: Path, info: dict[str, Any], name: str = "docker", code: int = 0) -> ContainerCli:
    """A client whose daemon says this."""
    (folder / "info.json").write_text(json.dumps(info))
    program = folder / name
    program.write_text(
        f'#!/bin/sh\n[ "$1" = info ] || exit 1\ncat {folder}/info.json\nexit {code}\n'
    )
    program.chmod(0o755)
    return ContainerCli(str(program))


def ask(cli: ContainerCli, **wanted: Any) -> Daemon:
    asked: dict[str, Any] = {
        "gpus": False,
        "driver_version": None,
        "image_cuda": None,
        "disk_needed_bytes": None,
    }
    return require_ready(cli, **(asked | wanted))


# The real daemon --------------------------------------------------------------------------------


def test_the_daemon_of_this_machine_is_ready_for_a_cpu_run(docker_daemon: RealDaemon) -> None:
    cli = docker_daemon.cli
    daemon = ask(cli, disk_needed_bytes=1)
    assert daemon.version[0].isdigit() and daemon.cgroup_version in (1, 2)
    assert daemon.is_podman == cli.is_podman
    if daemon.storage_free_bytes is not None:
        assert daemon.storage_free_bytes > 0
        with pytest.raises(RefusedError, match="are needed") as refused:
            ask(cli, disk_needed_bytes=daemon.storage_free_bytes + GIB)
        assert "system df" in str(refused.value.hint)


def test_a_daemon_that_is_down_is_refused(
    docker_daemon: RealDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = docker_daemon.cli
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(RefusedError, match="is not running"):
        ask(cli)


def test_podman_describes_itself(tmp_path: Path) -> None:
    program = shutil.which("podman")
    if program is None:
        pytest.skip("needs podman")
    daemon = ready.ask_daemon(ContainerCli(program))
    assert daemon.is_podman and daemon.cgroup_version in (1, 2)


@pytest.fixture
def second_daemon(docker_daemon: RealDaemon) -> Iterator[tuple[str, Path]]:
    """A dockerd with nothing but a PATH of its own: its socket, and a folder on that PATH."""
    dockerd = shutil.which("dockerd")
    if dockerd is None or os.getuid() != 0:
        pytest.skip("needs dockerd, and root to start it")
    # a short path: its containerd's socket lies six names deeper, and can have 107 letters
    place = Path(tempfile.mkdtemp(prefix="runner-d-", dir="/tmp"))
    programs = place / "programs"
    programs.mkdir()
    hook = programs / ready.HOOK
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    socket = f"unix://{place}/d.sock"
    arguments = ["--host", socket, "--data-root", str(place / "data")]
    arguments += ["--exec-root", str(place / "exec"), "--pidfile", str(place / "pid")]
    # its own: with none, dockerd removes the first daemon's docker0
    make_bridge("runnertest9", "172.31.252.1/24")
    arguments += ["--bridge", "runnertest9", "--iptables=false", "--ip-masq=false"]
    log = place / "log"

    def start() -> subprocess.Popen[bytes]:
        with log.open("wb") as stream:
            return subprocess.Popen(
                [dockerd, *arguments],
                env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
                stdout=stream,
                stderr=stream,
            )

    process = start()
    try:
        deadline, starts = time.monotonic() + 600, 1
        while subprocess.run(
            ["docker", "--host", socket, "version"], capture_output=True
        ).returncode:
            if process.poll() is not None:
                last = "".join(log.read_text().splitlines()[-1:])
                # dockerd gives its containerd 15 seconds, which a busy machine can take for more
                if "timeout waiting for containerd" not in last or starts == 4:
                    pytest.skip(f"no second dockerd can be started here: {last}")
                process, starts = start(), starts + 1
            elif time.monotonic() > deadline:
                pytest.skip("a second dockerd does not answer here, after 10 minutes")
            time.sleep(0.1)
        yield socket, hook
    finally:
        process.terminate()
        process.wait(600)
        # dockerd mounts its data on itself, and does not always take that down
        subprocess.run(["umount", "--recursive", str(place / "data")], capture_output=True)
        subprocess.run(["ip", "link", "delete", "runnertest9"], capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def test_the_hook_is_looked_for_where_that_dockerd_looks(
    docker_daemon: RealDaemon, second_daemon: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = docker_daemon.cli
    before = ready.ask_daemon(cli).nvidia
    socket, hook = second_daemon
    monkeypatch.setenv("DOCKER_HOST", socket)
    assert ask(cli, gpus=True).nvidia == "hook"
    hook.unlink()
    if before == "none":  # else this machine has a toolkit
        with pytest.raises(RefusedError, match="no NVIDIA runtime"):
            ask(cli, gpus=True)


# What daemons say -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "nvidia"),
    [
        ({"Runtimes": {"runc": {}, "nvidia": {"path": "nvidia-container-runtime"}}}, "runtime"),
        # docker 28.3: DiscoveredDevices, with the daemon's feature "cdi" on by default
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, "cdi"),
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "vendor.com/net=0"}]}, "unknown"),
        ({}, "unknown"),  # not told, and this client has no socket to look behind
        ({"Runtimes": None}, "unknown"),
        # a runtime of another name is not NVIDIA's
        ({"Runtimes": {"not-nvidia": {"path": "/opt/nvidia"}}}, "unknown"),
    ],
)
def test_what_hands_out_gpus(tmp_path: Path, changes: dict[str, Any], nvidia: str) -> None:
    if shutil.which(ready.HOOK):
        pytest.skip("this machine has NVIDIA's hook")
    # nothing refuses what can't be told: then the run's own failure speaks
    assert ask(client(tmp_path, docker_info(**changes)), gpus=True).nvidia == nvidia


def test_gpus_described_for_a_daemon_that_does_not_list_them(tmp_path: Path) -> None:
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
    told = docker_info(CDISpecDirs=[str(tmp_path / "cdi"), "/absent"])  # docker 25 to 28.2
    assert ask(client(tmp_path, told), gpus=True).nvidia == "cdi"


def test_podman_without_described_gpus_is_refused_for_a_gpu_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "_CDI_FOLDERS", (str(tmp_path / "cdi"),))
    monkeypatch.setattr(ready, "_PODMAN_HOOKS", (str(tmp_path / "hooks"),))
    cli = client(tmp_path, podman_info(), "podman")
    daemon = ask(cli)
    assert daemon.is_podman and daemon.rootless and daemon.version == "4.3.1"
    assert daemon.cgroup_version == 2 and daemon.limits_pids
    with pytest.raises(RefusedError, match="CDI") as refused:
        ask(cli, gpus=True)
    assert "nvidia-ctk cdi generate" in str(refused.value.hint)
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "nvidia.json").write_text('{"kind": "nvidia.com/gpu"}')
    assert ask(cli, gpus=True).nvidia == "cdi"
    remote = client(tmp_path, podman_info(serviceIsRemote=True), "podman")
    assert ask(remote, gpus=True).nvidia == "unknown"
    # podman's stand-in for docker is known by its answer
    assert ask(client(tmp_path, podman_info(), "docker")).is_podman


def test_nothing_of_this_machine_is_taken_for_a_remote_daemons(tmp_path: Path) -> None:
    for changes in ({"Name": "another"}, {"KernelVersion": "5.15.0-linuxkit"}):
        daemon = ask(client(tmp_path, docker_info(**changes)), disk_needed_bytes=10**18)
        assert daemon.storage_free_bytes is None
    with pytest.raises(RefusedError, match="are needed"):
        ask(client(tmp_path, docker_info()), disk_needed_bytes=10**18)


def test_a_full_disk_is_refused_even_where_nothing_more_is_needed() -> None:
    full = Daemon("28", False, 2, 10 * 1024**2, "none", False, Path("/var/lib/docker"))
    with pytest.raises(RefusedError, match=r"10 MiB free \(/var/lib/docker\)"):
        ready.require_disk(full, None)


def test_limits_that_the_daemon_would_ignore_are_known(tmp_path: Path) -> None:
    told = docker_info(MemoryLimit=False, PidsLimit=None, SecurityOptions=["name=rootless"])
    daemon = ask(client(tmp_path, told))
    assert daemon.limits_memory is False and daemon.limits_pids is None and daemon.rootless


@pytest.mark.parametrize(
    ("code", "info"),
    [
        (1, {"ServerVersion": "", "ServerErrors": ["Cannot connect to the Docker daemon at x"]}),
        # docker 20.10's client ends with 0
        (0, {"ServerVersion": "", "ServerErrors": ["Cannot connect to the Docker daemon at x"]}),
    ],
)
def test_a_daemon_that_is_down_in_the_clients_json(
    tmp_path: Path, code: int, info: dict[str, Any]
) -> None:
    with pytest.raises(RefusedError, match=r"daemon.* is not running"):
        ask(client(tmp_path, info, code=code))


def test_warnings_before_the_answer_are_no_failure(tmp_path: Path) -> None:
    text = "WARNING: Error loading config file\n" + json.dumps(docker_info())
    told = ready.parse_info(Answer(0, text, ""))
    assert not isinstance(told, Answer) and told[0].version == "20.10.24+dfsg1"


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(
    st.integers(0, 130),
    st.dictionaries(
        st.sampled_from(
            [*docker_info(), "host", "store", "version", "ServerErrors", "CDISpecDirs"]
        ),
        VALUE | st.sampled_from([*docker_info().values(), *podman_info().values()]),
    ),
    st.text(),
)
def test_any_answer_is_a_daemon_or_a_failure(code: int, info: dict[str, Any], err: str) -> None:
    told = ready.parse_info(Answer(code, json.dumps(info), err))
    if isinstance(told, Answer):
        assert told.code != 0
    else:
        assert code == 0 and told[0].version


@given(st.text())
def test_an_answer_that_is_no_json_is_a_failure(text: str) -> None:
    told = ready.parse_info(Answer(0, text, ""))
    assert isinstance(told, Answer)


# Driver and CUDA --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "cuda", "needs"),
    [
        ("580.65.06", "13.0.1", None),
        ("580.65.05", "13.0.1", "580.65.06"),
        ("575.57.08", "13.1", "580.65.06"),
        ("525.60.13", "12.8.1", None),
        ("525.60.11", "12.8.1", "525.60.13"),
        ("520.61.05", "12.0", "525.60.13"),
        ("450.80.02", "11.8.0", None),
        ("450.51.06", "11.8.0", "450.80.02"),
        ("615.20", "12.4", None),  # newer drivers run older CUDA
        ("1000.1", "13.0", None),
        (None, "13.0", None),
        ("570.1", None, None),
        ("570.1", "14.0", None),  # not in the table
        ("570.1", "10.2", None),
        ("", "", None),
        ("unknown", "12", None),
    ],
)
def test_a_driver_too_old_for_the_images_cuda(
    tmp_path: Path, driver: str | None, cuda: str | None, needs: str | None
) -> None:
    info = docker_info(Runtimes={"nvidia": {}})
    if needs is None:
        ask(client(tmp_path, info), gpus=True, driver_version=driver, image_cuda=cuda)
        return
    with pytest.raises(RefusedError, match=f"needs {needs}") as refused:
        ask(client(tmp_path, info), gpus=True, driver_version=driver, image_cuda=cuda)
    assert "renew the driver" in str(refused.value.hint)
    ask(client(tmp_path, info), driver_version=driver, image_cuda=cuda)  # a CPU run needs none


def test_the_way_out_names_a_cuda_that_the_driver_runs() -> None:
    with pytest.raises(RefusedError) as refused:
        ready.require_driver("550.54.15", "13.0")
    assert "on CUDA 12.9" in str(refused.value.hint)
    with pytest.raises(RefusedError) as refused:
        ready.require_driver("440.33", "11.8")
    assert "on CUDA" not in str(refused.value.hint)


def test_asking_imports_nothing_heavy() -> None:
    program = (
        "import sys, runner.containers.ready, runner.containers.orphans\n"
        "import runner.containers.refusals\n"
        "print([m for m in ('torch', 'pynvml', 'psutil', 'pydantic', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
