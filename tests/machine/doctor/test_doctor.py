"""`runner doctor` as a user runs it: a process of its own, on machines made of fakes."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from runner.common.units import GIB, MIB
from runner.machine.doctor.disk import Disk, disk_check
from runner.machine.doctor.gpus import Card, Gpus, bf16_check, gpu_check
from runner.machine.doctor.host import Host
from runner.machine.doctor.memory import Memory, memory_check, shared_memory_check
from runner.machine.doctor.packages import PACKAGES, Package, package_check
from runner.machine.doctor.torch_build import Torch, torch_check
from runner.machine.doctor.versions import is_in_range
from tests.testbed import H100, REPOSITORY, FakeNvml, build_nvml

DOCKER_UP = """#!/bin/sh
echo '{"ServerVersion":"28.5.1","Runtimes":{"io.containerd.runc.v2":{},"nvidia":{}}}'
"""
DOCKER_DOWN = """#!/bin/sh
why="Cannot connect to the Docker daemon at unix:///var/run/docker.sock."
echo '{"ServerVersion":"","ServerErrors":["'"$why"' Is the docker daemon running?"]}'
exit 1
"""
DOCKER_FORBIDDEN = """#!/bin/sh
echo 'permission denied while trying to connect to the Docker daemon socket at unix:...' >&2
exit 1
"""
FAKE_TORCH = """
import warnings
__version__ = {version!r}
class version:
    cuda, hip = {cuda!r}, None
class cuda:
    def is_available():
        if {said!r}:
            warnings.warn({said!r})
        return {devices} > 0
    def device_count(): return {devices}
    def get_arch_list(): return {architectures!r}
"""


@dataclass
class Machine:
    """A machine made for one test: what is on its PATH and in its environment."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.programs = self.folder / "bin"
        self.programs.mkdir()
        for name in ("bash", "git", "sleep"):
            found = shutil.which(name)
            assert found, f"the tests need {name}"
            (self.programs / name).symlink_to(found)
        kept = ("HOME", "LANG", "TMPDIR")
        self.environment = {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PATH": str(self.programs),
            "PYTHONPATH": os.pathsep.join((str(self.folder / "packages"), str(REPOSITORY))),
            "HF_HOME": str(self.folder / "hf"),
            "RUNNER_CACHE": str(self.folder / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        self.torch()

    def program(self, name: str, script: str) -> None:
        (self.programs / name).write_text(script)
        (self.programs / name).chmod(0o755)

    def torch(
        self,
        version: str = "2.13.0+cpu",
        cuda: str | None = None,
        devices: int = 0,
        architectures: tuple[str, ...] = (),
        said: str = "",
    ) -> None:
        """A torch that imports at once and says this of itself."""
        package = self.folder / "packages" / "torch"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(
            FAKE_TORCH.format(
                version=version,
                cuda=cuda,
                devices=devices,
                architectures=list(architectures),
                said=said,
            )
        )
        for old in package.parent.glob("torch-*.dist-info"):
            shutil.rmtree(old)
        self.distribution("torch", version)

    def distribution(self, name: str, version: str) -> None:
        folder = self.folder / "packages" / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner", "doctor", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def checks(self, code: int = 0) -> dict[str, dict[str, Any]]:
        """The checks by name, from `runner doctor --json`, which ended with `code`."""
        done = self.doctor("--json")
        assert done.returncode == code, done.stdout + done.stderr
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("doctor-nvml"))


@pytest.fixture
def hardware(machine: Machine, nvml_folder: Path) -> FakeNvml:
    fake = FakeNvml(nvml_folder, machine.folder / "nvml.state")
    machine.environment["LD_LIBRARY_PATH"] = str(nvml_folder)
    machine.environment["NVML_STUB"] = str(fake.state)
    return fake


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A loopback port that refuses: bound, so that nobody else takes it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A loopback port that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield listening.getsockname()[1]


@dataclass
class Mirror:
    port: int
    status: int = 200
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A hub's mirror on loopback; what it was asked, and with which authorization."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append((self.command, self.path, self.headers.get("Authorization")))
            self.send_response(made.status)
            if made.status == 307:
                self.send_header("Location", "http://192.0.2.1/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Mirror(server.server_address[1])
        asked = made.asked
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield made
        server.shutdown()


def online(machine: Machine, endpoint: str) -> None:
    del machine.environment["HF_HUB_OFFLINE"]
    machine.environment["HF_ENDPOINT"] = endpoint


# The command and its report ---------------------------------------------------------------------


def test_a_machine_without_a_gpu_is_no_problem_and_leaves_a_report(machine: Machine) -> None:
    report = machine.folder / "validation_report.json"
    report.write_text("an older report")
    done = machine.doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(report.read_text())
    assert record["schema_version"] == 1
    assert record["host"]["python"] and record["host"]["gpus"] == []
    assert record["when"].endswith("+00:00")
    for check in record["checks"]:
        assert set(check) == {"name", "status", "found", "advice"}
        assert check["status"] in ("ok", "warning", "problem", "skipped")
        assert check["found"]
        assert (check["advice"] is None) == (check["status"] in ("ok", "skipped"))
        assert f"{check['name']} " in done.stdout and check["found"] in done.stdout
    counted = [check["status"] for check in record["checks"]]
    assert record["summary"] == {s: counted.count(s) for s in record["summary"]}
    by_name = {check["name"]: check for check in record["checks"]}
    assert by_name["gpu"]["status"] == "skipped"
    assert "host-memory budget only" in by_name["budget"]["found"]
    assert by_name["torch build"]["found"] == "2.13.0+cpu, CPU only"
    assert done.stdout.splitlines()[-2].startswith("summary    ")
    assert done.stdout.splitlines()[-1] == "report     validation_report.json"
    assert "checking" in done.stderr and "checking" not in done.stdout
    left = {path.name for path in machine.folder.iterdir()}
    assert left == {"bin", "packages", "validation_report.json"}


def test_json_on_stdout_is_the_report(machine: Machine) -> None:
    done = machine.doctor("--json", "--out", "elsewhere.json")
    assert json.loads(done.stdout) == json.loads((machine.folder / "elsewhere.json").read_text())


def test_the_real_torch_is_asked_in_a_process_of_its_own(machine: Machine) -> None:
    pytest.importorskip("torch", reason="needs the training stack")
    machine.environment["PYTHONPATH"] = str(REPOSITORY)
    (machine.folder / "torch.py").write_text("raise SystemExit('not this one')")
    found = machine.checks()
    assert found["torch build"]["status"] == "ok"
    assert found["torch build"]["found"].startswith(found["torch"]["found"].split(" ")[0])


@pytest.mark.parametrize(
    ("out", "says"),
    [("absent/report.json", "there is no folder"), ("bin", "is not a file")],
)
def test_a_report_that_can_not_lie_there_is_refused_at_once(
    machine: Machine, out: str, says: str
) -> None:
    done = machine.doctor("--out", out)
    assert done.returncode == 2
    assert says in done.stderr and done.stdout == ""
    assert "checking" not in done.stderr
    assert not (machine.folder / "absent").exists()


def test_a_pipe_is_not_replaced_by_the_report(machine: Machine) -> None:
    pipe = machine.folder / "pipe"
    os.mkfifo(pipe)
    assert machine.doctor("--out", str(pipe)).returncode == 2
    assert pipe.is_fifo()


def test_the_command_itself_imports_no_torch() -> None:
    program = "import sys, runner.cli.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


def test_no_secret_is_printed_whatever_repeats_it(machine: Machine, closed_port: int) -> None:
    secrets = ["hf_TopSecretToken", "prox-pass", "mirror-pass", "daemon-pass", "anna"]
    online(machine, "http://anna:mirror-pass@mirror.invalid?key=mirror-pass")
    machine.environment |= {
        "HF_TOKEN": secrets[0],
        "http_proxy": f"http://anna:{secrets[1]}@127.0.0.1:{closed_port}",
        "DOCKER_HOST": f"tcp://anna:{secrets[3]}@127.0.0.1:{closed_port}",
    }
    machine.program("docker", '#!/bin/sh\necho "no: $HF_TOKEN $DOCKER_HOST" >&2\nexit 1\n')
    done = machine.doctor("--json")
    report = (machine.folder / "validation_report.json").read_text()
    found = {check["name"]: check["found"] for check in json.loads(report)["checks"]}
    for secret in secrets:
        assert secret not in done.stdout + done.stderr + report
    assert found["hub token"] == "set (HF_TOKEN)"
    assert f"proxy http://***@127.0.0.1:{closed_port}" in found["hub"]
    assert "http://***@mirror.invalid" in found["hub"]


# Packages and disks -----------------------------------------------------------------------------


def test_a_package_outside_its_range_is_a_problem(machine: Machine) -> None:
    machine.distribution("trl", "0.9.6")
    machine.distribution("bitsandbytes", "0.40.0")
    found = machine.checks(code=1)
    assert found["trl"]["status"] == "problem"
    assert found["trl"]["found"] == "0.9.6, outside the range >=1.10,<2"
    assert found["trl"]["advice"].startswith("pip install 'trl>=1.10,<2'")
    assert found["bitsandbytes"]["status"] == "warning"  # jobs without QLoRA need it not


def test_a_torch_that_can_not_be_imported_is_a_problem(machine: Machine) -> None:
    broken = machine.folder / "packages" / "torch" / "__init__.py"
    broken.write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    found = machine.checks(code=1)
    assert found["torch"]["status"] == "ok"
    assert "libcudart.so.13: cannot open" in found["torch build"]["found"]


def test_runs_that_can_not_be_kept_are_a_problem(machine: Machine) -> None:
    (machine.folder / "file").write_text("")
    machine.environment["RUNNER_RUNS"] = str(machine.folder / "file" / "runs")
    found = machine.checks(code=1)
    assert found["disk runs"]["status"] == "problem"
    assert "is a file" in found["disk runs"]["found"]
    assert found["disk cache"]["found"].endswith("made at first use)")


def test_missing_packages_are_named_with_what_needs_them() -> None:
    missing = [package_check(Package(name, None, ">=1", None)) for name in PACKAGES]
    assert [c.name for c in missing if c.status == "warning"] == ["bitsandbytes", "deepspeed"]
    assert "QLoRA" in missing[6].found and "ZeRO" in missing[7].found


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.13.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("5.17", ">=5.17,<6", True),
        ("6.0.0", ">=5.17,<6", False),
        ("1.10.0", "==1.10", True),
        ("1.10.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, fits: bool) -> None:
    assert is_in_range(version, wanted) is fits


def test_a_nearly_full_disk_warns() -> None:
    disk = Disk("runs", Path("/data/runs"), True, None, True, 9 * GIB, 500 * GIB)
    assert disk_check(disk).status == "warning"
    assert disk_check(replace(disk, free_bytes=11 * GIB)).status == "ok"
    assert disk_check(replace(disk, writable=False)).status == "problem"


def test_a_container_with_little_memory_warns() -> None:
    host = Host("h", "s", "k", "x86_64", 2, "3.11.7", "/py", True, "0.1.0", "docker")
    little = Memory(64 * GIB, 60 * GIB, 2 * GIB, 64 * MIB)
    assert memory_check(little).status == "warning"
    shared = shared_memory_check(little, host)
    assert shared.status == "warning" and "--shm-size" in str(shared.advice)
    roomy = replace(little, limit_bytes=None, shared_bytes=8 * GIB)
    assert memory_check(roomy).status == "ok"
    assert shared_memory_check(roomy, host).status == "ok"


# Docker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "found", "advice"),
    [
        (DOCKER_DOWN, "the daemon is not running", "systemctl start docker"),
        (DOCKER_FORBIDDEN, "no permission to use the daemon", "usermod -aG docker"),
    ],
)
def test_a_daemon_that_can_not_be_used_is_told_with_its_cure(
    machine: Machine, script: str, found: str, advice: str
) -> None:
    machine.program("docker", script)
    docker = machine.checks()["docker"]
    assert docker["status"] == "warning" and docker["found"] == found
    assert advice in docker["advice"]


def test_a_machine_with_podman_alone(machine: Machine) -> None:
    machine.program("podman", "#!/bin/sh\necho podman version 5.4.2\n")
    found = machine.checks()
    assert found["docker"]["status"] in ("warning", "skipped")
    assert found["podman"]["found"].startswith("5.4.2")


def test_a_hanging_client_and_a_silent_mirror_are_given_up_together(
    machine: Machine, silent_port: int
) -> None:
    pid_file = machine.folder / "pid"
    machine.program("docker", f"#!/bin/sh\nsleep 300 &\necho $! > {pid_file}\nwait\n")
    online(machine, f"http://127.0.0.1:{silent_port}")
    start = time.monotonic()
    done = machine.doctor("--json")
    assert time.monotonic() - start < 9
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert "did not answer in 5 s" in found["docker"]["found"]
    assert "did not answer in 5 s" in found["hub"]["found"]
    assert found["hub"]["status"] == "warning"
    assert "waiting    for the hub, up to 5 s" in done.stderr
    with contextlib.suppress(FileNotFoundError):  # killed, with its children
        state = Path(f"/proc/{pid_file.read_text().strip()}/stat").read_text()
        assert state.rpartition(")")[2].split()[0] == "Z"


# The hub ----------------------------------------------------------------------------------------


def test_a_mirror_that_answers(machine: Machine, mirror: Mirror) -> None:
    online(machine, f"http://anna:pass-word@127.0.0.1:{mirror.port}/hf/")
    hub = machine.checks()["hub"]
    assert hub["status"] == "ok"
    assert hub["found"] == f"http://***@127.0.0.1:{mirror.port}/hf/ (HF_ENDPOINT) answers"
    [(method, path, authorization)] = mirror.asked
    assert method == "HEAD" and path.startswith("/hf/") and path.endswith("/config.json")
    assert authorization == "Basic YW5uYTpwYXNzLXdvcmQ="


@pytest.mark.parametrize(("status", "verdict"), [(307, "ok"), (404, "warning"), (503, "warning")])
def test_what_a_mirror_answers(machine: Machine, mirror: Mirror, status: int, verdict: str) -> None:
    mirror.status = status
    online(machine, f"http://127.0.0.1:{mirror.port}")
    hub = machine.checks()["hub"]
    assert hub["status"] == verdict
    assert verdict == "ok" or f"HTTP {status}" in hub["found"]


def test_a_mirror_that_refuses(machine: Machine, closed_port: int) -> None:
    online(machine, f"http://127.0.0.1:{closed_port}")
    hub = machine.checks()["hub"]
    assert hub["status"] == "warning" and hub["found"].endswith("refused the connection")
    assert "HF_HUB_OFFLINE=1" in hub["advice"]


def test_an_endpoint_without_its_scheme_is_a_problem(machine: Machine) -> None:
    online(machine, "hf-mirror.com")
    assert machine.checks(code=1)["hub"]["status"] == "problem"


def test_offline_switches_are_respected_and_named(machine: Machine, mirror: Mirror) -> None:
    online(machine, f"http://127.0.0.1:{mirror.port}")
    machine.environment["TRANSFORMERS_OFFLINE"] = "yes"
    hub = machine.checks()["hub"]
    assert hub["status"] == "skipped" and "TRANSFORMERS_OFFLINE=yes" in hub["found"]
    assert mirror.asked == []


# GPUs -------------------------------------------------------------------------------------------


def test_a_machine_with_a_gpu_and_its_torch(machine: Machine, hardware: FakeNvml) -> None:
    hardware.set("driver 615.20", f"gpu 0 GPU-aaaa {H100}")
    machine.torch("2.13.0", cuda="13.0", devices=1, architectures=("sm_80", "sm_90"))
    machine.program("docker", DOCKER_UP)
    machine.program("nvidia-ctk", "#!/bin/sh\necho NVIDIA Container Toolkit CLI version 1.20.1\n")
    found = machine.checks()
    assert found["gpu"]["found"] == "driver 615.20; 0: NVIDIA H100 80GB HBM3 (79.65 GiB)"
    assert found["torch build"]["found"] == "2.13.0, CUDA 13.0; sees 1 of 1 GPU(s)"
    assert found["bf16"]["status"] == "ok" and "9.0" in found["bf16"]["found"]
    assert "torch's cap + NVML watchdog" in found["budget"]["found"]
    if found["budget"]["status"] == "ok":  # else these tests run in a container
        assert found["budget"]["found"].startswith("driver limit")
    assert found["docker"]["found"] == "daemon 28.5.1"
    assert found["docker gpu"]["status"] == "ok"
    record = json.loads((machine.folder / "validation_report.json").read_text())
    assert record["host"]["gpus"][0]["total_bytes"] == 81559 * MIB
    assert record["host"]["driver"] == "615.20"


def test_a_torch_without_cuda_beside_a_gpu_is_a_problem(
    machine: Machine, hardware: FakeNvml
) -> None:
    hardware.set(f"gpu 0 GPU-aaaa {H100}")
    found = machine.checks(code=1)
    assert found["torch build"]["status"] == "problem"
    assert "CPU only: it can't use the GPU" in found["torch build"]["found"]
    assert found["docker gpu"]["status"] == "skipped"


def test_a_driver_too_old_for_torch_is_told_with_the_build_that_fits(
    machine: Machine, hardware: FakeNvml
) -> None:
    hardware.set("driver 550.54.15", f"gpu 0 GPU-aaaa {H100}")
    said = "CUDA initialization: The NVIDIA driver on your system is too old"
    machine.torch("2.13.0", cuda="13.0", said=said)
    build = machine.checks(code=1)["torch build"]
    assert "driver 550.54.15 is too old for CUDA 13.0, which needs 580 or newer" in build["found"]
    assert said in build["found"]
    assert "cu126 fits it" in build["advice"]
    assert "https://download.pytorch.org/whl/cu126 'torch==2.13.0'" in build["advice"]
    assert (
        "RUNNER_TORCH_INDEX=https://download.pytorch.org/whl/cu126 ./just setup"
        in (build["advice"])
    )


def test_a_build_that_fits_an_older_driver_is_right(machine: Machine, hardware: FakeNvml) -> None:
    hardware.set("driver 550.54.15", f"gpu 0 GPU-aaaa {H100}")
    machine.torch("2.13.0+cu126", cuda="12.6", devices=1, architectures=("sm_90",))
    build = machine.checks()["torch build"]
    assert (build["status"], build["found"]) == (
        "ok",
        "2.13.0+cu126, CUDA 12.6; sees 1 of 1 GPU(s)",
    )


def test_a_driver_that_does_not_match_its_library_is_a_problem(
    machine: Machine, hardware: FakeNvml
) -> None:
    hardware.set("init 18", f"gpu 0 GPU-aaaa {H100}")
    found = machine.checks(code=1)
    assert found["gpu"]["status"] == "problem" and "mismatch" in found["gpu"]["found"].lower()
    assert "reboot" in found["gpu"]["advice"]
    assert found["budget"]["status"] == "problem"


def test_a_lost_card_is_a_problem(machine: Machine, hardware: FakeNvml) -> None:
    lost = H100.replace(" 0 NVIDIA", " 15 NVIDIA")
    hardware.set(f"gpu 0 GPU-aaaa {H100}", f"gpu 1 GPU-bbbb {lost}")
    machine.torch("2.13.0", cuda="13.0", devices=1, architectures=("sm_90",))
    gpu = machine.checks(code=1)["gpu"]
    assert gpu["status"] == "problem" and "1:" in gpu["found"] and "(lost)" in gpu["found"]
    assert gpu["advice"].startswith("GPU 1 needs a reset")


def test_hidden_and_older_cards() -> None:
    card = Card(0, "Tesla V100", 32 * GIB, 31 * GIB, 7.0, lost=False)
    gpus = Gpus((card,), "580.95", "", False, True, None, "")
    hidden = torch_check(gpus, Torch("2.13.0", "13.0"))
    assert hidden.status == "warning" and "CUDA_VISIBLE_DEVICES='' hides" in hidden.found
    seen = Torch("2.13.0", "13.0", devices=1, architectures=("sm_75", "sm_90", "compute_90"))
    build = torch_check(gpus, seen)
    assert build.status == "problem" and "no kernels for Tesla V100 (7.0)" in build.found
    assert bf16_check(gpus).status == "warning"
    newer = replace(gpus, cards=(replace(card, compute_capability=12.0),))
    assert torch_check(newer, seen).status == "ok"  # by PTX


def test_hardware_without_its_driver_is_told() -> None:
    bare = Gpus((), None, "no NVIDIA driver library on this machine", False, True, None, None)
    assert gpu_check(bare).status == "warning"
    in_container = replace(bare, module="580.95.05")
    assert "utility" in str(gpu_check(in_container).advice)
