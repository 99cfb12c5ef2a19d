"""What this machine is and has: one small function a question, each answering a frozen dataclass.

Imports the standard library, psutil and runner's own edge (container, facts, folder, sources,
guard.nvml); never torch, which is asked in a process of its own. Nothing here judges, and no probe
outlasts the seconds that its constant names. No value of a secret leaves this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil

from runner import __version__
from runner.common.caches import cache_folder
from runner.common.hub_address import DEFAULT_ENDPOINT
from runner.common.own_python import code_argv, module_argv, utf8_environment
from runner.common.packages import package_version
from runner.containers import cli as cli_module
from runner.containers import ready
from runner.containers.cli import ContainerCli
from runner.machine import nvml as nvml_module
from runner.runs.folder import default_root

TORCH_SECONDS = 60.0  # a first import from a network disk takes this long
NVML_SECONDS = 10.0
DOCKER_SECONDS = 5.0
VERSION_SECONDS = 3.0  # for `podman --version` and its like
HUB_SECONDS = 5.0

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "deepspeed",
)
_SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "WANDB_API_KEY",
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_URLS = (*_PROXIES, "HF_ENDPOINT", "DOCKER_HOST")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_NVIDIA = "0x10de"  # PCI vendor
_DISPLAY = "0x03"  # PCI class of VGA and 3D controllers

_ASK_TORCH = """
import json, warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import torch
    available = torch.cuda.is_available()
    print("\\n" + json.dumps({
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "devices": torch.cuda.device_count() if available else 0,
        "architectures": torch.cuda.get_arch_list() if available else [],
        "said": [str(w.message) for w in seen if "CUDA" in str(w.message)],
    }))
"""


# Programs that are asked ------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """How a program answered. `code` is None where it did not start or had to be ended."""

    code: int | None
    out: str
    err: str
    timed_out: bool = False


def ask(argv: list[str], seconds: float) -> Answer:
    """Run a program for at most `seconds`; then it and its children are killed.

    In the caller's process group, so that Ctrl-C ends it too.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=utf8_environment(),
        )
    except OSError as error:
        return Answer(None, "", str(error))
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        process.kill()
        # one that the kernel can't end (a stuck driver) is left behind rather than waited for
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        return Answer(None, "", "", timed_out=True)
    return Answer(process.returncode, out, err)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _last_json(text: str) -> dict[str, object] | None:
    """The JSON object in the last line of `text`, or None."""
    try:
        found = json.loads(_last_line(text))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


# The host ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """Facts that the report carries; nothing here is judged."""

    name: str
    system: str
    kernel: str
    machine: str
    cores: int
    python: str
    executable: str
    virtual_environment: bool
    runner: str
    container: str | None
    """The engine ("docker", "podman") where this is inside a container."""


def host() -> Host:
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        system = platform.system()
    return Host(
        name=platform.node(),
        system=system,
        kernel=platform.release(),
        machine=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        executable=sys.executable,
        virtual_environment=sys.prefix != sys.base_prefix,
        runner=__version__,
        container=_container(),
    )


def _container() -> str | None:
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return os.environ.get("container") or None  # noqa: SIM112 - as systemd spells it


@dataclass(frozen=True)
class Package:
    """A package of the training stack."""

    name: str
    installed: str | None
    wanted: str
    """The range that runner asks for, such as ">=5.17,<6"; empty where it names none."""
    locked: str | None
    """The version that the tests ran with; None away from a checkout."""


def packages(root: Path | None = None) -> tuple[Package, ...]:
    """Installed versions beside the ranges of pyproject.toml (else of runner's own metadata)."""
    root = root or Path(__file__).resolve().parents[3]
    wanted: dict[str, str] = {}
    for requirement in _requirements(root):
        match = re.match(r"([A-Za-z0-9._-]+?)\s*((?:[<>=!~]=?=?[^;]*)?)(?:;|$)", requirement)
        if match:
            wanted[match[1].lower()] = match[2].strip()
    locked: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (root / "requirements.lock").read_text(encoding="utf-8").splitlines():
            match = re.match(r"([a-z0-9._-]+)==(\S+)", line)
            if match:
                locked.setdefault(match[1], match[2])
    return tuple(
        Package(name, package_version(name), wanted.get(name, ""), locked.get(name))
        for name in PACKAGES
    )


def _requirements(root: Path) -> list[str]:
    # a checkout's pyproject.toml is newer than the metadata of an editable install
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == "runner":
            return [line for lines in project["optional-dependencies"].values() for line in lines]
    except (OSError, ValueError, KeyError):
        pass
    try:
        return metadata.requires("runner") or []
    except metadata.PackageNotFoundError:
        return []


@dataclass(frozen=True)
class Tools:
    """Programs that a run calls: where they are, or None."""

    bash: str | None
    git: str | None


def tools() -> Tools:
    return Tools(shutil.which("bash"), shutil.which("git"))


# GPU and torch ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """One GPU as NVML lists it. Bytes are None where the driver does not tell."""

    index: int
    name: str
    total_bytes: int | None
    free_bytes: int | None
    compute_capability: float | None
    lost: bool


@dataclass(frozen=True)
class Gpus:
    """What NVML says, and the signs of a GPU where it says nothing."""

    cards: tuple[Card, ...]
    driver: str | None
    absence: str
    """Why `cards` is empty; empty text where it is not."""
    broken: bool
    """There is a driver and it does not work."""
    hardware: bool
    """The PCI bus lists an NVIDIA GPU."""
    module: str | None
    """The version of NVIDIA's kernel module, where it is loaded."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES; None where it is not set."""


def gpus() -> Gpus:
    """What NVML lists. Without a bound of its own: see `stuck_gpus`."""
    if not nvml_module.library_present():
        return _no_gpus("no NVIDIA driver library (libnvidia-ml.so.1) on this machine", False)
    try:
        with nvml_module.Nvml() as nvml:
            cards = tuple(_card(nvml, index) for index, _ in nvml.devices())
            driver = nvml.driver_version()
    except nvml_module.NvmlUnavailable as error:
        return _no_gpus(f"NVML can't be used: {error.reason}", error.fatal)
    except nvml_module.NvmlFailed as error:
        return _no_gpus(f"NVML does not answer: {error}", True)
    if not cards:
        return _no_gpus("NVML lists no GPU", False, driver)
    return Gpus(cards, driver, "", False, True, _kernel_module(), _visible())


def stuck_gpus() -> Gpus:
    """What is known where NVML did not come back in NVML_SECONDS."""
    return _no_gpus(f"NVML did not answer in {NVML_SECONDS:.0f} s: the driver hangs", True)


def _card(nvml: nvml_module.Nvml, index: int) -> Card:
    try:
        reading = nvml.read(index)
    except nvml_module.NvmlFailed:
        return Card(index, "unnamed GPU", None, None, None, lost=False)
    return Card(
        index,
        reading.name or "unnamed GPU",
        reading.total_bytes,
        reading.free_bytes,
        None if reading.lost else nvml.compute_capability(index),
        reading.lost,
    )


def _no_gpus(absence: str, broken: bool, driver: str | None = None) -> Gpus:
    module = _kernel_module()
    return Gpus((), driver or module, absence, broken, _hardware(), module, _visible())


def _visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _kernel_module() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return match[0] if match else None


def _hardware() -> bool:
    with contextlib.suppress(OSError):
        for device in Path("/sys/bus/pci/devices").iterdir():
            with contextlib.suppress(OSError):
                vendor = (device / "vendor").read_text().strip()
                kind = (device / "class").read_text().strip()
                if vendor == _NVIDIA and kind.startswith(_DISPLAY):
                    return True
    return False


@dataclass(frozen=True)
class Torch:
    """torch as a fresh process sees it; `failure` says why it could not be asked."""

    version: str = ""
    cuda: str | None = None
    """The CUDA version that it was built for; None for a CPU (or ROCm) build."""
    hip: str | None = None
    devices: int = 0
    architectures: tuple[str, ...] = ()
    """Of its kernels: "sm_90", "compute_90"; empty where torch sees no GPU."""
    said: str = ""
    """torch's own warning about CUDA."""
    failure: str = ""


def torch_build() -> Torch | None:
    """None where torch is not installed."""
    if package_version("torch") is None:
        return None
    answer = ask(code_argv(_ASK_TORCH), TORCH_SECONDS)
    if answer.timed_out:
        return Torch(failure=f"its import took over {TORCH_SECONDS:.0f} s")
    told = _last_json(answer.out)
    if answer.code != 0 or told is None:
        said = _last_line(answer.err) or f"exit code {answer.code}, without a word"
        return Torch(failure=f"it can't be imported: {said}")
    return Torch(
        version=str(told.get("version")),
        cuda=_text(told.get("cuda")),
        hip=_text(told.get("hip")),
        devices=int(str(told.get("devices") or 0)),
        architectures=_texts(told.get("architectures")),
        said=" ".join(_texts(told.get("said"))[:1]),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


# Containers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Docker:
    """The Docker client, its daemon, and what hands GPUs to containers."""

    client: str | None
    """Where the client is; None where there is none."""
    server: str | None = None
    """The daemon's version; None where it was not reached."""
    failure: str = ""
    """Why the daemon was not reached, in the client's words; "timeout" where it said nothing."""
    address: str | None = None
    """DOCKER_HOST, masked; None where it is not set."""
    rootless: bool = False
    nvidia: bool = False
    """A runtime, a CDI device or the prestart hook of NVIDIA's toolkit was found."""
    toolkit: str | None = None
    """The version of nvidia-container-toolkit on this machine."""
    is_podman: bool = False
    """`docker` is podman's stand-in."""


@dataclass(frozen=True)
class Podman:
    """podman, and whether an ordinary user could use it."""

    version: str | None
    user_namespaces: bool


@dataclass(frozen=True)
class Containers:
    """Containers of runs, as runner.machine.doctor.containers finds them."""

    orphans: tuple[str, ...] = ()
    """Names of those of this user and host whose supervisor is gone."""
    others: int = 0
    """Of runs that go on, of other users, of other hosts."""
    skipped: str = ""
    """Why nobody was asked."""


@dataclass(frozen=True)
class Removal:
    """An orphan that --fix removed, or tried to."""

    name: str
    run: str
    """The run's folder."""
    since: str
    """When it was started, else made; ISO 8601, UTC."""
    state: str
    """docker's word for it before it was removed."""
    gpu_bytes: int | None
    """None where NVML told of none."""
    exit_code: int | None = None
    last_line: str = ""
    """Of its log."""
    failure: str = ""

    def done(self, exit_code: int | None, last_line: str) -> Removal:
        return replace(self, exit_code=exit_code, last_line=last_line)

    def failed(self, why: str) -> Removal:
        return replace(self, failure=why)


def docker() -> Docker:
    """One question to the daemon, of at most DOCKER_SECONDS."""
    client = shutil.which("docker")
    toolkit = _toolkit()
    address = os.environ.get("DOCKER_HOST")
    masked = None if address is None else mask_url(address)
    if client is None:
        return Docker(None, toolkit=toolkit, address=masked)
    cli = ContainerCli(client)
    answer = ask(cli.argv(*ready.INFO), DOCKER_SECONDS)
    if answer.timed_out:
        return Docker(client, failure="timeout", address=masked, toolkit=toolkit)
    code = 127 if answer.code is None else answer.code
    told = ready.parse_info(cli_module.Answer(code, answer.out, answer.err))
    if isinstance(told, cli_module.Answer):
        said = _last_line(told.err) or f"exit code {answer.code}, without a word"
        return Docker(client, failure=said, address=masked, toolkit=toolkit)
    daemon = ready.look_around(cli, *told)
    if daemon.is_podman:
        return Docker(client, server="podman", address=masked, toolkit=toolkit, is_podman=True)
    return Docker(
        client=client,
        server=daemon.version,
        address=masked,
        rootless=daemon.rootless,
        nvidia=daemon.nvidia != "none" and (daemon.nvidia != "unknown" or toolkit is not None),
        toolkit=toolkit,
    )


def podman() -> Podman:
    program = shutil.which("podman")
    version = None
    if program is not None:
        answer = ask([program, "--version"], VERSION_SECONDS)
        version = _version(answer.out) or "of unknown version"
    try:
        spaces = int(Path("/proc/sys/user/max_user_namespaces").read_text()) > 0
    except (OSError, ValueError):
        spaces = True  # not told: not held against it
    return Podman(version, spaces)


def _toolkit() -> str | None:
    program = shutil.which("nvidia-ctk")
    if program is None:
        return None
    return _version(ask([program, "--version"], VERSION_SECONDS).out)


def _version(text: str) -> str | None:
    match = re.search(r"\d+(?:\.\d+)+", text)
    return match[0] if match else None


# Disk and memory --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """The file system that a folder is on, or will be on."""

    purpose: str
    path: Path
    there: bool
    """The folder exists."""
    blocked_by: Path | None
    """A file where a folder is needed."""
    writable: bool
    free_bytes: int | None
    total_bytes: int | None


def disks() -> tuple[Disk, ...]:
    """Of the runs, of runner's cache and of the hub's."""
    return (
        disk("runs", default_root()),
        disk("cache", cache_folder()),
        disk("hub cache", hub_cache()),
    )


def disk(purpose: str, path: Path) -> Disk:
    """Asked of the nearest folder that exists: the rest is made at first use."""
    path = path.expanduser().absolute()
    try:
        nearest = next(place for place in (path, *path.parents) if place.exists())
        blocked = nearest if not nearest.is_dir() else None
        usage = shutil.disk_usage(nearest)
    except (OSError, StopIteration):
        return Disk(purpose, path, False, None, False, None, None)
    writable = os.access(nearest, os.W_OK | os.X_OK)
    return Disk(purpose, path, nearest == path, blocked, writable, usage.free, usage.total)


def hub_home() -> Path:
    """huggingface_hub's own folder, by its own rules."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface")


def hub_cache() -> Path:
    """Where downloaded weights and data lie."""
    return Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub")


@dataclass(frozen=True)
class Memory:
    """Host memory and the space for what processes share, in bytes."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    """The cgroup's, where it is below the total."""
    shared_bytes: int | None
    """The size of /dev/shm; None where there is none."""


def memory() -> Memory:
    found = psutil.virtual_memory()
    limit = cgroup_limit(Path("/sys/fs/cgroup"))
    try:
        shm = os.statvfs("/dev/shm")  # noqa: S108 - asked for its size
        shared: int | None = shm.f_blocks * shm.f_frsize
    except OSError:
        shared = None
    binding = limit if limit is not None and limit < found.total else None
    return Memory(found.total, found.available, binding, shared)


def cgroup_limit(mount: Path) -> int | None:
    """The smallest memory limit above this process (cgroup v2, else v1), in bytes."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limits.append(int((place / name).read_text()))
            if place == top:
                break
    return min(limits, default=None)


# Network ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hub:
    """The hub, or the mirror that stands in for it."""

    endpoint: str
    """Masked; empty where HF_ENDPOINT is set to nothing."""
    mirror: bool
    """HF_ENDPOINT names it."""
    offline: str | None
    """The switch that forbids the network, as NAME=VALUE."""
    proxy: str | None
    """The proxy that the endpoint is reached through, masked."""
    token: str | None
    """Where a token was found; never the token."""
    status: int | None = None
    """What it answered (HTTP); None where it did not, or was not asked."""
    failure: str = ""
    """One of hub_address's kinds, or "url" where the endpoint is no http(s) address."""
    text: str = ""
    """The failure in the system's words."""


def hub() -> Hub:
    """One request of at most HUB_SECONDS, in a process of its own: a name look-up has no bound."""
    endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT)
    offline = next((n for n in _OFFLINE if _is_true(os.environ.get(n))), None)
    asked = Hub(
        endpoint=mask_url(endpoint),
        mirror="HF_ENDPOINT" in os.environ,
        offline=f"{offline}={os.environ[offline]}" if offline else None,
        proxy=_proxy(endpoint),
        token=_token(),
    )
    if offline:
        return asked
    if not re.match(r"https?://[^/]", endpoint):
        return replace(asked, failure="url")
    answer = ask(module_argv("runner.common.hub_address"), HUB_SECONDS)
    if answer.timed_out:
        return replace(asked, failure="timeout")
    told = _last_json(answer.out) or {"failure": "other", "text": _last_line(answer.err)}
    status = told.get("status")
    return replace(
        asked,
        status=status if isinstance(status, int) else None,
        failure=str(told.get("failure") or ""),
        text=str(told.get("text") or ""),
    )


def _is_true(value: str | None) -> bool:
    """As huggingface_hub reads its switches."""
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def _proxy(endpoint: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(endpoint)
    except ValueError:
        return None
    address = parts.netloc.rpartition("@")[2]
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or urllib.request.proxy_bypass(address):
        return None
    return mask_url(proxy)


def _token() -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return name
    path = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
    try:
        return str(path) if path.stat().st_size > 0 else None
    except OSError:
        return None


# Secrets ----------------------------------------------------------------------------------------


def mask_url(url: str) -> str:
    """A URL without its user, password and query: "http://***@proxy:3128"."""
    head, separator, rest = url.rpartition("@")
    if separator:
        scheme = re.match(r"[a-z0-9+.-]+://", head, re.IGNORECASE)
        url = f"{scheme[0] if scheme else ''}***@{rest}"
    return re.sub(r"[?#].*", "", url, flags=re.DOTALL)


def secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values that must not be printed, whatever program repeats them; longest first."""
    found = {environment.get(name, "") for name in _SECRETS}
    for name in _URLS:
        user, separator, _ = environment.get(name, "").rpartition("@")
        if separator:
            user = re.sub(r"^[a-z0-9+.-]+://", "", user, flags=re.IGNORECASE)
            password = user.partition(":")[2]
            found |= {user, password, urllib.parse.unquote(password)}
    # shorter ones would strike out innocent words; `mask_url` hides those where they stand
    return tuple(sorted((text for text in found if len(text) >= 6), key=len, reverse=True))
