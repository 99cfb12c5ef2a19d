"""A Docker daemon for the tests, the train image built on it, and a node with fake GPUs.

A daemon that answers is used as it is and left as it was. Where there is none, or where one with
our GPU hook is needed, a second is started in a folder of its own (RUNNER_TESTBED, kept between
sessions for its layers), with its own socket, bridge, data and exec roots: it touches nothing of
the first one's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.common.errors import RunnerError
from runner.containers.build import Request, build
from runner.containers.cli import ContainerCli, find_cli
from runner.containers.images import Image, default_name, find_image
from tests.testbed import REPOSITORY

FOLDER = Path(os.environ.get("RUNNER_TESTBED", "/var/tmp/runner-testbed"))
BASE = "runner-testbed-base:bookworm"
START_SECONDS = 300.0
GPUS = (
    "driver 580.95.05",
    "gpu 0 GPU-11111111-0000-4000-8000-000000000001 81559 0 0 40 70000 0 NVIDIA H100 80GB HBM3",
    "gpu 1 GPU-22222222-0000-4000-8000-000000000002 81559 0 0 41 71000 0 NVIDIA H100 80GB HBM3",
)
UUIDS = tuple(line.split()[2] for line in GPUS if line.startswith("gpu "))


def _own(folder: Path) -> bytes:
    """What tells the daemon of one folder from that of another."""
    return hashlib.sha256(str(folder).encode()).digest()


def bridge_of(folder: Path) -> str:
    """Its own: with --bridge=none, or the default, dockerd removes the first daemon's docker0."""
    return f"runner{_own(folder).hex()[:8]}"


@dataclass(frozen=True)
class Daemon:
    """A daemon to test with."""

    host: str | None
    """What DOCKER_HOST has to say; None for the one that is there anyway."""
    hook: Path | None
    """The folder of the GPU hook and its settings; None for a daemon without it."""

    @property
    def cli(self) -> ContainerCli:
        """The program; call it with DOCKER_HOST set (`use`)."""
        found = find_cli()
        assert found is not None
        return found

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the test's own commands reach this daemon."""
        if self.host:
            monkeypatch.setenv("DOCKER_HOST", self.host)

    def set_gpus(self, *lines: str) -> None:
        """Replace the fake node's hardware, in nvml_stub.c's words."""
        assert self.hook is not None
        new = self.hook / "nvml.state.new"
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.hook / "nvml.state")

    def asked(self) -> list[dict[str, Any]]:
        """What docker asked the hook for, a record a container."""
        log = (self.hook or Path()) / "hook.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def answers() -> str | None:
    """Why no daemon can be used; None where one answers."""
    cli = find_cli()
    if cli is None:
        return "there is no docker on PATH"
    answer = cli.ask("version")
    return None if answer.code == 0 else answer.reason


@contextmanager
def own_daemon(folder: Path = FOLDER) -> Iterator[Daemon]:
    """A daemon of the tests' own in `folder`, shared by all test processes; the last one stops it.

    Skips, with the reason, where none can run.
    """
    program = shutil.which("dockerd")
    if program is None:
        pytest.skip("needs a dockerd: none on PATH (tests/testbed/docker-setup.sh installs one)")
    if os.getuid() != 0:
        pytest.skip("needs root, to start a dockerd")
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for the stub NVML")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users.lock").open("w") as users, (folder / "start.lock").open("w") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        daemon = Daemon(f"unix://{folder}/docker.sock", folder / "hook")
        if not _is_up(daemon):
            _lay_out_hook(folder / "hook")
            _start(program, folder)
        fcntl.flock(start, fcntl.LOCK_UN)
        try:
            yield daemon
        finally:
            fcntl.flock(start, fcntl.LOCK_EX)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # another process uses it
            else:
                _stop(folder)


def _is_up(daemon: Daemon) -> bool:
    command = ["docker", "--host", str(daemon.host), "version"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _lay_out_hook(folder: Path) -> None:
    """The hook and its settings; python3 and the rest it finds on the PATH that dockerd gets."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    here = Path(__file__).parent
    shutil.copy(here / "nvidia-container-runtime-hook", folder)
    library = folder / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run([*command, str(here / "nvml_in_container.c")], check=True)
    (folder / "nvml.state").write_text("\n".join(GPUS) + "\n")


def _start(program: str, folder: Path) -> None:
    make_bridge(bridge_of(folder), f"172.31.{_own(folder)[0]}.1/24")
    for file in (folder / "docker.pid", folder / "exec" / "containerd" / "containerd.pid"):
        _drop_if_stale(file, folder)
    arguments = ["--host", f"unix://{folder}/docker.sock", "--pidfile", f"{folder}/docker.pid"]
    arguments += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    arguments += [
        "--bridge",
        bridge_of(folder),
        "--iptables=false",
        "--ip-forward=false",
        "--ip-masq=false",
    ]
    # vfs, which dockerd falls back to, copies the whole image for each of its layers
    arguments += ["--storage-driver", "overlay2"]
    log = folder / "docker.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, *arguments],
            env={**os.environ, "PATH": f"{folder}/hook:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not _is_up(Daemon(f"unix://{folder}/docker.sock", None)):
        if process.poll() is not None or time.monotonic() > deadline:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            process.kill()
            pytest.skip(f"no dockerd can run here: {said[-1] if said else 'it says nothing'}")
        time.sleep(0.2)


def _drop_if_stale(pid_file: Path, folder: Path) -> None:
    """After a kill the number may be another program's by now, for which dockerd would wait."""
    try:
        pid = int(pid_file.read_text())
        ours = f"{folder}/" in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        ours = False
    if not ours:
        pid_file.unlink(missing_ok=True)


def make_bridge(name: str, address: str) -> None:
    """A bridge for a daemon of the tests' own; skips where none can be made."""
    if not Path(f"/sys/class/net/{name}").exists():
        for command in (
            ["ip", "link", "add", "name", name, "type", "bridge"],
            ["ip", "addr", "add", address, "dev", name],
            ["ip", "link", "set", name, "up"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no dockerd can run here: {' '.join(command)}: {done.stderr.strip()}")


def kill_daemon(folder: Path) -> None:
    """SIGKILL the daemon there, and nothing else: its containers go on under their shims."""
    os.kill(int((folder / "docker.pid").read_text()), 9)


def start_again(folder: Path) -> None:
    """Start the daemon there after `kill_daemon`, on the same data."""
    program = shutil.which("dockerd")
    assert program is not None
    (folder / "docker.pid").unlink(missing_ok=True)
    # its own containerd has outlived it, and is not taken over but waited for in vain; with systemd
    # it would be a service of its own. The shims, and so the containers, outlive it too.
    for file in folder.glob("exec/containerd/*.pid"):
        with suppress(OSError, ValueError):
            os.kill(int(file.read_text()), 9)
        file.unlink(missing_ok=True)
    _start(program, folder)


def _stop(folder: Path) -> None:
    """End the daemon that the pid file names, if it is ours, and take the bridge down."""
    try:
        pid = int((folder / "docker.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        return
    if f"{folder}/" not in command:
        return
    os.kill(pid, 15)
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        with suppress(ChildProcessError):  # started by another test process
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)
    # a dockerd that was killed leaves its data folder mounted on itself, once for each time
    while (folder / "data").is_mount():
        if subprocess.run(["umount", str(folder / "data")], capture_output=True).returncode:
            break
    subprocess.run(["ip", "link", "delete", bridge_of(folder)], capture_output=True)


@pytest.fixture(scope="session")
def docker_daemon() -> Iterator[Daemon]:
    """A daemon: the one that answers, else one that is started; skips where there can be none."""
    if os.environ.get("RUNNER_NO_DOCKER"):
        pytest.skip("RUNNER_NO_DOCKER is set")
    if answers() is None:
        yield Daemon(os.environ.get("DOCKER_HOST"), None)
        return
    with own_daemon() as daemon, pytest.MonkeyPatch.context() as patch:
        daemon.use(patch)
        yield daemon


@pytest.fixture(scope="session")
def gpu_daemon() -> Iterator[Daemon]:
    """A daemon whose --gpus gives two fake H100; always the second one. Set DOCKER_HOST by `use`.

    `bring` takes an image from the other daemon to it.
    """
    if os.environ.get("RUNNER_NO_DOCKER"):
        pytest.skip("RUNNER_NO_DOCKER is set")
    with own_daemon() as daemon:
        yield daemon


def bring(image: Image, daemon: Daemon) -> None:
    """Have an image of the daemon in use on another one too; a minute for the train image."""
    there = ["docker", "--host", str(daemon.host)]
    if subprocess.run([*there, "image", "inspect", image.id], capture_output=True).returncode:
        with subprocess.Popen(["docker", "save", image.name], stdout=subprocess.PIPE) as saving:
            subprocess.run([*there, "load"], stdin=saving.stdout, check=True, capture_output=True)
        assert saving.returncode == 0
    subprocess.run([*there, "tag", image.id, image.name], check=True)


@pytest.fixture(scope="session")
def train_image(docker_daemon: Daemon) -> Image:
    """The real train image, of the CPU lock, on a base made here; layers are kept for the next.

    Skips where the base can't be made; fails where the image can't be built.
    """
    return build_train_image(docker_daemon)


def build_train_image(daemon: Daemon) -> Image:
    """Build (or find unchanged) base and train image on the daemon in use."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(str(daemon.host).encode()).hexdigest()[:8]
    with (FOLDER / f"build-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = build_base(daemon)
        said: list[str] = []
        # the host's network: the base has the host's index, and a test's bridge may lead nowhere
        request = Request("train", base, cpu=True, arguments=("EXTRA_INDEX_URL=",), network="host")
        try:
            build(daemon.cli, request, lambda _step, line: said.append(line))
        except RunnerError as error:
            pytest.fail("\n".join([*error.lines(), *said[-20:]]))
        image = find_image(daemon.cli, default_name("train"))
        assert image is not None
        return image


def build_base(daemon: Daemon) -> str:
    """The stand-in for nvidia/cuda, made once a month; skips where it can't be."""
    if find_image(daemon.cli, BASE) is None:
        if os.getuid() != 0:
            pytest.skip("needs root, to make the base image")
        if shutil.which("debootstrap") is None:
            pytest.skip("needs debootstrap (tests/testbed/docker-setup.sh installs it)")
    done = subprocess.run(
        [str(REPOSITORY / "tests" / "testbed" / "base_image.sh"), BASE],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no base image can be made here: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    # python -m tests.testbed.docker: the train image, for trying things by hand
    print(build_train_image(Daemon(os.environ.get("DOCKER_HOST"), None)), file=sys.stderr)
