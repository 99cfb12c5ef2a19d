"""Images with a daemon: the real train image, what is in it, and what verify, save and load do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.containers import context, images
from runner.containers.cli import ContainerCli
from runner.containers.images import Image, default_name
from tests.support.command import Answer
from tests.testbed import REPOSITORY
from tests.testbed.docker import BASE, UUIDS, Daemon, bring, build_base

Cli = Callable[..., Answer]
LOCKED_DOWN = (
    *("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges", "--tmpfs", "/tmp:mode=1777", "--env", "HOME=/tmp"),
)


def run(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(daemon.cli.argv(*arguments), capture_output=True, text=True)


@pytest.fixture
def derived(
    docker_daemon: Daemon, train_image: Image, tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Builds an image on the train image by these instructions; removed afterwards."""
    made: list[str] = []

    def make(*instructions: str) -> str:
        name = f"runner-test-derived:{os.getpid()}-{len(made)}"
        lines = [f"FROM {train_image.id}", "USER root", *instructions, "USER 10001:10001"]
        (tmp_path / "Dockerfile").write_text("\n".join(lines) + "\n")
        command = docker_daemon.cli.argv("build", "--network", "none", "--tag", name, str(tmp_path))
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        made.append(name)
        return name

    yield make
    for name in made:
        docker_daemon.cli.ask("image", "rm", name)


# What is in it ----------------------------------------------------------------------------------


def test_the_image_says_what_it_is_and_holds(docker_daemon: Daemon, train_image: Image) -> None:
    assert train_image.kind == "train"
    assert train_image.labels[context.LOCK_FILE] == "train-cpu.lock"
    assert train_image.labels[context.BASE_NAME] == BASE
    facts = images.image_facts(docker_daemon.cli, train_image)
    assert facts.python is not None and facts.python.startswith("3.")
    assert facts.packages["torch"].endswith("+cpu") and facts.cuda is None
    assert not [name for name in facts.packages if name.startswith("nvidia-cu")]


def test_facts_are_asked_once(
    docker_daemon: Daemon, train_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path))
    first = images.image_facts(docker_daemon.cli, train_image)
    nowhere = ContainerCli(str(tmp_path / "no-such-program"))
    assert images.image_facts(nowhere, train_image) == first


def test_any_user_can_run_it_on_a_read_only_root(docker_daemon: Daemon, train_image: Image) -> None:
    program = (
        "import getpass, os, pathlib, sys, torch, runner.engines.sft.inside.train.train\n"
        "pathlib.Path.home().joinpath('written').write_text('x')\n"
        "print(os.getuid(), os.getgid(), getpass.getuser(), sys.executable, pathlib.Path.home())"
    )
    options = (*LOCKED_DOWN, "--user", "1234:4321")
    done = run(docker_daemon, *options, train_image.id, "python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1234", "4321", "runner", "/opt/runner/bin/python", "/tmp"]
    assert "CUDA ==" not in done.stderr  # the base's own entry point is not in the way


def test_without_a_user_it_is_not_root_and_home_is_writable(
    docker_daemon: Daemon, train_image: Image
) -> None:
    script = "id -u; touch ~/x && echo wrote; cat /proc/1/comm; runner --version"
    done = run(
        docker_daemon, "run", "--rm", "--network", "none", train_image.id, "sh", "-c", script
    )
    assert done.stdout.split()[:3] == ["10001", "wrote", "tini"], done.stderr
    assert done.stdout.split()[3] == "runner"


def test_all_bytecode_is_there(docker_daemon: Daemon, train_image: Image) -> None:
    """On a read-only root nothing could keep it: each start would compile anew."""
    program = (
        "import importlib.util, pathlib, runner, transformers\n"
        "for package in (runner, transformers):\n"
        "    for path in pathlib.Path(package.__file__).parent.rglob('*.py'):\n"
        "        if not pathlib.Path(importlib.util.cache_from_source(str(path))).exists():\n"
        "            print(path)\n"
    )
    done = run(docker_daemon, *LOCKED_DOWN, train_image.id, "python", "-c", program)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_triton_needs_to_compile_is_there(docker_daemon: Daemon, train_image: Image) -> None:
    script = (
        "cd /tmp && printf '#include <Python.h>\\nint x;\\n' > a.c && gcc -c -fPIC "
        '$(python -c \'import sysconfig; print("-I" + sysconfig.get_path("include"))\') a.c'
    )
    done = run(docker_daemon, *LOCKED_DOWN, train_image.id, "sh", "-c", script)
    assert done.returncode == 0, done.stderr


def test_sigterm_reaches_the_process(docker_daemon: Daemon, train_image: Image) -> None:
    script = "trap 'echo got it; exit 7' TERM; echo up; while :; do sleep 0.1; done"
    options = ("--detach", "--network", "none")
    started = run(docker_daemon, "run", *options, train_image.id, "sh", "-c", script)
    assert started.returncode == 0, started.stderr
    name = started.stdout.strip()
    try:
        deadline = time.monotonic() + 600
        while "up" not in run(docker_daemon, "logs", name).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        run(docker_daemon, "stop", "--time", "20", name)
        assert "got it" in run(docker_daemon, "logs", name).stdout
        assert run(docker_daemon, "wait", name).stdout.strip() == "7"
    finally:
        run(docker_daemon, "rm", "--force", name)


# Verify -----------------------------------------------------------------------------------------


def test_verify_accepts_what_was_just_built(
    docker_daemon: Daemon, train_image: Image, cli: Cli
) -> None:
    answer = cli("image", "verify", "--json")
    record = json.loads(answer.out)
    assert record["differences"] == [] and answer.code == 0
    assert record["compared_packages"] > 100 and record["id"] == train_image.id
    listed = json.loads(cli("image", "list", "--json").out)["images"]
    assert next(i for i in listed if i["id"] == train_image.id)["stale"] is None


def test_verify_names_a_changed_a_lacking_and_a_further_package(
    derived: Callable[..., str], cli: Cli
) -> None:
    name = derived(
        "RUN pip uninstall --yes einops "
        "&& cd $(python -c 'import sysconfig; print(sysconfig.get_path(\"purelib\"))') "
        "&& sed -i 's/^Version: .*/Version: 0.0.1/' filelock-*.dist-info/METADATA "
        "&& mkdir extra-1.0.dist-info "
        "&& printf 'Metadata-Version: 2.1\\nName: extra\\nVersion: 1.0\\n' "
        "> extra-1.0.dist-info/METADATA"
    )
    answer = cli("image", "verify", name)
    assert answer.code == 1
    assert "einops: the lock says" in answer.out and "it is not installed" in answer.out
    assert "filelock: the lock says" in answer.out and "0.0.1 is installed" in answer.out
    assert "extra: 1.0 is installed, the lock has none" in answer.out


def test_verify_notices_changed_code(derived: Callable[..., str], cli: Cli) -> None:
    name = derived("RUN echo '# patched' >> /opt/runner/package/runner/plan.py")
    answer = cli("image", "verify", name)
    assert answer.code == 1
    assert "files in /opt/runner/package are not those that it was built with" in answer.out


def test_a_foreign_image_holds_nothing_we_know(docker_daemon: Daemon, cli: Cli) -> None:
    base = build_base(docker_daemon)
    image = images.find_image(docker_daemon.cli, base)
    assert image is not None and image.kind is None
    facts = images.image_facts(docker_daemon.cli, image)
    assert facts.python is None and facts.cuda is None and not facts.packages
    answer = cli("image", "verify", base)
    assert answer.code == 1 and "runner did not build it" in answer.out


# Save and load ----------------------------------------------------------------------------------


@pytest.fixture
def small(docker_daemon: Daemon, tmp_path: Path) -> Iterator[Image]:
    """An image of runner's labels and a megabyte of noise."""
    (tmp_path / "noise").write_bytes(os.urandom(1 << 20))
    with tarfile.open(tmp_path / "small.tar", "w") as archive:
        archive.add(tmp_path / "noise", "noise")
    name = f"runner-test-small:{os.getpid()}"
    labels = context.labels(context.recipe("train"), {})
    changes = [
        word for pair in labels.items() for word in ("--change", "LABEL {}={}".format(*pair))
    ]
    docker_daemon.cli.require("import", *changes, str(tmp_path / "small.tar"), name)
    image = images.find_image(docker_daemon.cli, name)
    assert image is not None
    yield image
    docker_daemon.cli.ask("image", "rm", name)


SUFFIXES = [".tar", ".tar.gz"] + ([".tar.zst"] if shutil.which("zstd") else [])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saved_and_loaded_it_is_the_same(
    docker_daemon: Daemon, small: Image, cli: Cli, suffix: str
) -> None:
    saved = json.loads(cli("image", "save", f"x{suffix}", small.name, "--json").out)
    assert Path(f"x{suffix}.sha256").read_text() == f"{saved['sha256']}  x{suffix}\n"
    checked = subprocess.run(["sha256sum", "--check", f"x{suffix}.sha256"], capture_output=True)
    assert checked.returncode == 0
    docker_daemon.cli.require("image", "rm", small.name)
    answer = cli("image", "load", f"x{suffix}", "--json")
    assert answer.code == 0, answer.err
    (loaded,) = json.loads(answer.out)["images"]
    assert (loaded["id"], loaded["stale"]) == (small.id, None)
    # tidy: no temporaries beside the files
    assert sorted(p.name for p in Path().glob("x*")) == [f"x{suffix}", f"x{suffix}.sha256"]
    assert not list(Path().glob(".x*"))


def test_a_cut_short_file_loads_nothing(docker_daemon: Daemon, small: Image, cli: Cli) -> None:
    assert cli("image", "save", "x.tar.gz", small.name).code == 0
    docker_daemon.cli.require("image", "rm", small.name)
    whole = Path("x.tar.gz").read_bytes()
    Path("x.tar.gz").write_bytes(whole[: len(whole) // 2])
    assert cli("image", "load", "x.tar.gz").code == 3  # by the checksum
    Path("x.tar.gz.sha256").unlink()
    assert cli("image", "load", "x.tar.gz").code == 3  # by gzip itself
    assert images.find_image(docker_daemon.cli, small.name) is None


def test_what_is_no_image_is_refused(docker_daemon: Daemon, cli: Cli) -> None:
    Path("x.tar").write_bytes(os.urandom(4096))
    answer = cli("image", "load", "x.tar")
    assert answer.code == 3 and "can't be loaded" in answer.err


# Built again ------------------------------------------------------------------------------------


def layers(cli: ContainerCli, name: str) -> list[str]:
    found: list[str] = json.loads(cli.require("image", "inspect", name))[0]["RootFS"]["Layers"]
    return found


def test_a_change_of_code_renews_the_last_layers_only(
    docker_daemon: Daemon, train_image: Image, tmp_path: Path
) -> None:
    """In a copy of the project, of another version, so that nobody's image is replaced."""
    for name in ("docker", "jobs", "runner", "shell"):
        shutil.copytree(
            REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (tmp_path / "runner" / "__init__.py").write_text(f'__version__ = "0.0.0-test{os.getpid()}"\n')
    name = f"runner-train:0.0.0-test{os.getpid()}"
    command = [sys.executable, "-m", "runner", "image", "build", "--cpu", "--base", BASE, "--json"]
    command += ["--build-arg", "EXTRA_INDEX_URL=", "--network", "host"]
    begun = time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RUNNER_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - begun
    try:
        assert done.returncode == 0, done.stderr
        old, new = layers(docker_daemon.cli, train_image.id), layers(docker_daemon.cli, name)
        # system, lock, environment, describe.py, image.json, shell and jobs stay as they were
        same = sum(1 for one, two in zip(old, new, strict=True) if one == two)
        assert same >= len(old) - 3
        assert seconds < 600
    finally:
        docker_daemon.cli.ask("image", "rm", name)


def test_built_again_unchanged_it_is_the_same_image(
    docker_daemon: Daemon, train_image: Image, cli: Cli
) -> None:
    answer = cli(
        *("image", "build", "--cpu", "--base", BASE, "--network", "host", "--json"),
        *("--build-arg", "EXTRA_INDEX_URL="),
    )
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["id"] == train_image.id
    assert train_image.name == default_name("train")


def test_a_base_that_no_registry_here_has(docker_daemon: Daemon, cli: Cli) -> None:
    answer = cli("image", "build", "--base", "localhost:1/no-such-base:1")
    assert answer.code == 3
    assert "can't be pulled" in answer.err or "there is no image" in answer.err


# Fake GPUs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpu_base(docker_daemon: Daemon, gpu_daemon: Daemon) -> str:
    base = build_base(docker_daemon)
    image = images.find_image(docker_daemon.cli, base)
    assert image is not None
    bring(image, gpu_daemon)
    return base


def test_gpus_are_granted_by_uuid(
    gpu_daemon: Daemon, gpu_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_daemon.use(monkeypatch)
    wanted = f'"device={UUIDS[1]}","capabilities=compute,utility"'
    script = "ls /dev | grep nvidia; cat /etc/nvml.state; ls /usr/lib/*/libnvidia-ml.so.1"
    done = run(
        gpu_daemon,
        *("run", "--rm", "--network", "none", "--gpus", wanted, gpu_base, "sh", "-c", script),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["nvidia-uvm", "nvidia1", "nvidiactl"]
    assert UUIDS[1] in done.stdout and UUIDS[0] not in done.stdout
    asked = gpu_daemon.asked()[-1]
    assert asked["visible"] == UUIDS[1]
    assert set(asked["capabilities"].split(",")) == {"compute", "utility"}


def test_a_gpu_that_the_node_lacks_is_refused_as_nvidia_does(
    gpu_daemon: Daemon, gpu_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_daemon.use(monkeypatch)
    done = run(
        gpu_daemon,
        *("run", "--rm", "--network", "none", "--gpus", "device=GPU-99999999-0", gpu_base, "true"),
    )
    assert done.returncode == 125 and "unknown device" in done.stderr


def test_the_second_daemon_leaves_the_first_ones_bridge(gpu_daemon: Daemon) -> None:
    if Path("/sys/class/net/docker0").exists():
        with_bridge = subprocess.run(["ip", "addr", "show", "docker0"], capture_output=True)
        assert b"inet " in with_bridge.stdout
