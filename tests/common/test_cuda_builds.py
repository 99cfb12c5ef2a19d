"""Drivers older than the CUDA of the lock's torch: found out first, by doctor, set-up and build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.common import cuda_builds
from runner.common.errors import RefusedError, UsageError
from runner.containers import build as building
from runner.containers import context, images, locks
from runner.containers.build import Request, build_arguments
from runner.machine.doctor.packages import Package, package_check
from tests.testbed import H100, REPOSITORY, FakeNvml, build_nvml

LOCK = "cuda-toolkit==13.0.3.0 ; sys_platform == 'linux'\ntorch==2.13.0\n"
URL = "https://mirror.example/whl/cu128"


# The table --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "best", "fits_13"),
    [
        ("615.20", "cu130", True),
        ("580.65.06", "cu130", True),
        # of that branch, older than the toolkit's own: 12.8 whole, 13 by compatibility
        ("580.42", "cu128", True),
        ("579.99", "cu128", False),
        ("570.124.06", "cu128", False),
        ("570.26", "cu128", False),
        ("565.57.01", "cu126", False),
        ("560.28.03", "cu126", False),
        ("550.54.15", "cu126", False),
        ("525.60.13", "cu126", False),
        ("525.60.12", None, False),
        ("470.82.01", None, False),
    ],
)
def test_the_newest_build_that_a_driver_takes(driver: str, best: str | None, fits_13: bool) -> None:
    version = cuda_builds.parse_version(driver)
    assert version is not None
    found = cuda_builds.best_build(version)
    assert (found.tag if found else None) == best
    assert (cuda_builds.too_old(driver, "13.0") is None) == fits_13
    if not fits_13:
        assert f"driver {driver} is too old for CUDA 13.0, which needs 580 or newer" == (
            cuda_builds.too_old(driver, "13.0")
        )


def test_what_is_not_known_is_not_refused() -> None:
    assert cuda_builds.too_old(None, "13.0") is None
    assert cuda_builds.too_old("570.26", None) is None  # a CPU build
    assert cuda_builds.too_old("of no number", "13.0") is None
    assert cuda_builds.too_old("570.26", "14.1") is not None  # newer than any that is known
    assert cuda_builds.too_old("570.26", "12.9") is None  # not in the table, of a known major
    assert cuda_builds.locked_cuda("torch==2.13.0+cpu\n") is None


def test_the_real_lock_says_which_cuda_its_torch_is_for() -> None:
    for name in ("requirements.lock", "docker/train.lock"):
        assert cuda_builds.locked_cuda((REPOSITORY / name).read_text()) == "13.0"
    assert cuda_builds.locked_cuda((REPOSITORY / "docker/train-cpu.lock").read_text()) is None


def test_the_refusal_names_the_build_and_the_one_option() -> None:
    said = cuda_builds.refusal("570.124.06", LOCK, None, "take --torch-index {index}")
    assert said[0].startswith("driver 570.124.06 is too old for CUDA 13.0")
    assert "cu128 fits it (torch for CUDA 12.8, the same versions)" in said[1]
    assert "take --torch-index https://download.pytorch.org/whl/cu128" in said[1]
    assert said[2].endswith("take --torch-index pypi")
    by_compatibility = cuda_builds.refusal("535.54.03", LOCK, None, "{index}")
    assert "cu126 fits it, by CUDA's minor version compatibility" in by_compatibility[1]
    assert "no build of torch fits" in cuda_builds.refusal("470.1.1", LOCK, None, "{index}")[1]
    for index in (URL, cuda_builds.PYPI):  # the user's own word
        assert cuda_builds.refusal("570.124.06", LOCK, index, "{index}") == []


def test_doctors_advice_to_install_torch_is_of_the_build_that_fits() -> None:
    absent = Package("torch", None, ">=2.11", "2.13.0")
    index = "--extra-index-url https://download.pytorch.org/whl/cu128"
    assert index in str(package_check(absent, "570.124.06").advice)
    for driver in ("580.95.05", None, "470.82.01"):
        assert "--extra-index-url" not in str(package_check(absent, driver).advice)
    other = Package("trl", None, ">=1.10", None)
    assert "--extra-index-url" not in str(package_check(other, "570.124.06").advice)


# ./just setup -----------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/bash
# python3 for ./just: makes a .venv of itself, answers for pip, and asks the real one the rest
echo "$*" >>"$LOG"
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"--index-url https://lacks"*) echo "ERROR: No matching distribution found" >&2; exit 1 ;;
  "-m pip"* | "-c "*) ;;
  "-B -m runner.common.cuda_builds"*) exec "$REAL" "$@" ;;
  *) echo "Python 3.12.3" ;;
esac
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def hardware(nvml: Path, tmp_path: Path) -> FakeNvml:
    return FakeNvml(nvml, tmp_path / "nvml.state")


@pytest.fixture
def setup(tmp_path: Path, hardware: FakeNvml) -> Callable[..., tuple[int, str, str]]:
    """`./just --venv-only ...` in a folder of its own: exit code, stderr, the calls of python."""
    place, programs = tmp_path / "checkout", tmp_path / "bin"
    (place / "runner" / "common").mkdir(parents=True)
    programs.mkdir()
    for name in ("just", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, place)
    asked = ("__init__", "cuda_builds", "terminal", "own_python", "launchers")
    for name in ("__init__.py", *(f"common/{one}.py" for one in asked)):
        shutil.copy(REPOSITORY / "runner" / name, place / "runner" / name)
    (programs / "python3").write_text(FAKE_PYTHON)
    (programs / "python3").chmod(0o755)
    log = tmp_path / "log"

    def call(*arguments: str, **variables: str) -> tuple[int, str, str]:
        log.write_text("")
        environment = {key: v for key, v in os.environ.items() if key != "RUNNER_TORCH_INDEX"}
        environment |= {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(hardware.library_folder),
            "NVML_STUB": str(hardware.state),
            "PYTHONPATH": str(place),
            "LOG": str(log),
            "REAL": sys.executable,
            **variables,
        }
        done = subprocess.run(
            ["./just", "--venv-only", *arguments],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr, log.read_text()

    return call


def test_set_up_refuses_an_old_driver_before_anything_is_installed(
    setup: Any, hardware: FakeNvml
) -> None:
    hardware.set("driver 570.124.06", f"gpu 0 GPU-aaaa {H100}")
    code, said, called = setup()
    assert code == 3
    assert "driver 570.124.06 is too old for CUDA 13.0, which needs 580 or newer" in said
    index = "RUNNER_TORCH_INDEX=https://download.pytorch.org/whl/cu128 ./just setup"
    assert index in said and "Traceback" not in said
    assert "-m pip install" not in called and "-m venv" not in called


def test_set_up_takes_torch_from_the_users_index_and_keeps_to_it(
    setup: Any, hardware: FakeNvml
) -> None:
    hardware.set("driver 570.124.06", f"gpu 0 GPU-aaaa {H100}")
    code, said, called = setup("--torch-index", URL)
    assert code == 0, said
    assert f"--no-deps --index-url {URL} torch==" in called
    assert f"--extra-index-url {URL} -c requirements.lock" in called
    assert setup() == (0, "", "")  # no question a second time
    code, said, called = setup(RUNNER_TORCH_INDEX="pypi")  # another place: made anew
    assert code == 0 and "-m venv .venv" in called and "--extra-index-url" not in called


def test_an_index_without_the_locked_torch_is_not_replaced_in_silence(
    setup: Any, hardware: FakeNvml
) -> None:
    hardware.set("driver 570.124.06", f"gpu 0 GPU-aaaa {H100}")
    code, said, called = setup(RUNNER_TORCH_INDEX="https://lacks.example/cu128")
    assert code == 3
    assert "no torch of the locked version from https://lacks.example/cu128" in said
    assert "-c requirements.lock" not in called  # PyPI's, some GB, was not fetched in its place


@pytest.mark.parametrize("lines", [("driver 580.95.05",), ("init 9",)])
def test_set_up_goes_on_where_the_driver_fits_or_there_is_none(
    setup: Any, hardware: FakeNvml, lines: tuple[str, ...]
) -> None:
    hardware.set(*lines)
    code, said, called = setup()
    assert code == 0, said
    assert "-m pip install" in called and "--extra-index-url" not in called


def test_set_up_knows_no_other_option(setup: Any) -> None:
    assert setup("--torch-indx", URL)[0] == 2
    assert setup("--torch-index")[0] == 2


# runner image build -----------------------------------------------------------------------------


def test_a_build_refuses_an_old_driver_before_the_base_is_pulled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building, "_driver", lambda: "570.124.06")
    monkeypatch.setattr(building, "_settle_base", lambda *_: pytest.fail("something was pulled"))
    with pytest.raises(RefusedError) as refused:
        building.build(Any, Request("train"), lambda *_: None)  # type: ignore[arg-type]
    assert "driver 570.124.06 is too old for CUDA 13.0" in refused.value.message
    assert "runner image build --torch-index https://download.pytorch.org/whl/cu128" in str(
        refused.value.hint
    )


def test_the_index_reaches_the_build_from_option_or_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of = context.recipe("train")

    def arguments(**given: Any) -> list[str]:
        return build_arguments(of, Request("train", **given), None, {}, tmp_path)

    assert f"TORCH_INDEX={URL}" in arguments(torch_index=URL)
    assert not [each for each in arguments() if each.startswith("TORCH_INDEX")]
    monkeypatch.setenv("RUNNER_TORCH_INDEX", URL)
    assert f"TORCH_INDEX={URL}" in arguments()
    for given in ({"torch_index": "pypi"}, {"cpu": True}):
        assert not [each for each in arguments(**given) if each.startswith("TORCH_INDEX")]


@pytest.mark.parametrize(
    "request_",
    [
        Request("train", cpu=True, torch_index=URL),
        Request("mgm", torch_index=URL),
        Request("train", torch_index="cu128"),
    ],
)
def test_an_index_that_does_nothing_or_is_none_is_refused(request_: Request) -> None:
    with pytest.raises(UsageError, match="--torch-index"):
        building.build(Any, request_, lambda *_: None)  # type: ignore[arg-type]


def test_a_password_of_the_index_stays_out_of_the_label() -> None:
    assert building.without_password("https://me:secret@host/x") == "https://***@host/x"


def test_verify_compares_what_another_build_has_in_common_with_the_lock() -> None:
    apart = images._apart_from_cuda
    lock = {"torch": "2.13.0", "nvidia-cublas": "13.1", "numpy": "2.4.6", "nvidia-ml-py": "13"}
    there = {"torch": "2.13.0+cu128", "nvidia-cublas-cu12": "12.8", "numpy": "2.4.6"}
    there |= {"nvidia-ml-py": "13"}
    assert images.package_differences(apart(lock), apart(there)) == []
    there["torch"] = "2.12.0+cu128"
    assert images.package_differences(apart(lock), apart(there)) == [
        "torch: the lock says 2.13.0, 2.12.0 is installed"
    ]


def test_the_dockerfile_leaves_to_the_index_what_verify_leaves_out() -> None:
    """The recipe's awk and locks.is_of_cuda name the same packages."""
    text = (REPOSITORY / "docker" / "train.Dockerfile").read_text()
    program = next(
        line.strip().rstrip("\\").strip() for line in text.splitlines() if "wheel = " in line
    ).split("'")[1]
    lock = REPOSITORY / "docker" / "train.lock"

    def kept(other: str) -> set[str]:
        command = ["awk", "-v", f"other={other}", program, str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {entry.name for entry in locks.read_lock(done.stdout)}

    left_out = kept("") - kept(URL)
    names = {entry.name for entry in locks.read_lock(lock.read_text())}
    assert left_out == {name for name in names if name == "torch" or locks.is_of_cuda(name)}
    assert names - kept("") == {"deepspeed"}
