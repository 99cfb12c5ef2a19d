"""Build an image: choose the base, lay out the context, run and watch the builder.

Standard library and runner's own modules. Works with any builder that the container program has:
Docker's classic one, BuildKit, Podman's.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.common import cuda_builds
from runner.common.errors import RefusedError, RunnerError, UsageError
from runner.common.own_python import module_argv, safe_environment
from runner.containers import context
from runner.containers.cli import Answer, ContainerCli, explain
from runner.containers.images import Image, default_name, find_image, require_image

GRACE_SECONDS = 10.0  # for the program to stop its build after Ctrl-C
_TAIL = 60  # lines of the log that an error is looked for in

_STEP = re.compile(
    r"^(?:Step|STEP) (?P<step>\d+)/(?P<steps>\d+) ?: (?P<what>.*)"
    r"|^#\d+ \[(?:\S+ )? *(?P<kit>\d+)/(?P<kits>\d+)\] (?P<does>.*)"
)


@dataclass(frozen=True)
class Step:
    """A step of a build as it begins."""

    number: int
    of: int
    what: str


Progress = Callable[[Step | None, str], None]
"""Called for each line of the builder's output, with the step that begins there, if one does."""


@dataclass(frozen=True)
class Request:
    """What `runner image build` was asked for."""

    kind: str
    base: str | None = None
    """Another base than the recipe's own."""
    cpu: bool = False
    arguments: tuple[str, ...] = ()
    """Further build arguments, NAME=VALUE."""
    no_cache: bool = False
    network: str | None = None
    """Of the build's steps, as docker's; host reaches a proxy of this machine's loopback."""
    toolkit: Path | None = None
    torch_index: str | None = None
    """An index that has the locked torch for another CUDA; cuda_builds.PYPI for the lock's own."""

    @property
    def index(self) -> str | None:
        """`torch_index`, else the one that the environment names for where it is of use."""
        if self.torch_index is None and self.kind == "train" and not self.cpu:
            return os.environ.get(cuda_builds.INDEX_VARIABLE) or None
        return self.torch_index

    @property
    def other_index(self) -> str | None:
        """Where torch comes from instead of the lock's files; None for these."""
        return self.index if self.index != cuda_builds.PYPI else None


def parse_step(line: str) -> Step | None:
    """The step that a line of a builder's output begins, or None. Reads all three builders'."""
    match = _STEP.match(line)
    if match is None:
        return None
    if match["step"]:
        return Step(int(match["step"]), int(match["steps"]), match["what"].strip())
    return Step(int(match["kit"]), int(match["kits"]), match["does"].strip())


def build_arguments(
    of: context.Recipe, request: Request, base: str | None, labels: dict[str, str], folder: Path
) -> list[str]:
    """The arguments after `docker`. The user's own come last: they override ours."""
    out = ["build", "--force-rm", "--tag", default_name(of.kind)]
    out += ["--file", str(folder / "docker" / of.dockerfile)]
    if request.no_cache:
        out.append("--no-cache")
    if request.network:
        out += ["--network", request.network]
    given: dict[str, str] = {}
    if base:
        given["BASE"] = base
    if request.cpu:
        given |= {"LOCK": "train-cpu.lock", "EXTRA_INDEX_URL": context.TORCH_CPU_INDEX}
    if request.toolkit is not None:
        given["TOOLKIT"] = "context"
    if request.other_index:
        given["TORCH_INDEX"] = request.other_index
    for argument in request.arguments:
        name, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"--build-arg {argument!r} is not NAME=VALUE")
        ways = {
            "BASE": "--base REF",
            "LOCK": "--cpu, or a lock of your own in docker/",
            "TORCH_INDEX": "--torch-index URL",
        }
        if way := ways.get(name):
            raise UsageError(f"--build-arg {name}=… would leave the labels untrue", way)
        given[name] = value
    for name, value in given.items():
        out += ["--build-arg", f"{name}={value}"]
    for name, value in labels.items():
        out += ["--label", f"{name}={value}"]
    return [*out, str(folder)]


def build(cli: ContainerCli, request: Request, progress: Progress) -> Image:
    """Build an image and hand it back. Raises RefusedError with the way out where it fails.

    Ctrl-C (KeyboardInterrupt) stops the builder, and leaves neither the context nor the log.
    """
    if request.cpu and request.kind != "train":
        raise UsageError(f"--cpu is of the train image; the {request.kind} image has no such lock")
    if request.toolkit is not None and request.kind != "mgm":
        raise UsageError(f"--toolkit is of the mgm image, not of {request.kind}")
    if request.toolkit is not None and not request.toolkit.is_dir():
        raise UsageError(f"--toolkit {request.toolkit} is not a folder")
    of = context.recipe(request.kind, lock="train-cpu.lock" if request.cpu else None)
    _require_index(request)
    _require_driver(of, request)
    base = request.base or (context.CPU_BASE if request.cpu else of.default_base)
    told = _settle_base(cli, base, progress) if base else {}
    with tempfile.TemporaryDirectory(prefix="runner-image-") as name:
        folder = Path(name)
        context.assemble(folder, request.toolkit)
        if request.other_index:
            told |= {context.TORCH_INDEX: without_password(request.other_index)}
        arguments = build_arguments(of, request, base, context.labels(of, told), folder)
        code, log = _watch(cli, arguments, progress)
    if code:
        raise _explain_build(cli, code, log)
    with suppress(FileNotFoundError):
        log.unlink()
    return require_image(cli, default_name(of.kind))


def without_password(url: str) -> str:
    """An index's address as it may stand in a label."""
    return re.sub(r"://[^/\s@]+@", "://***@", url)


def _require_index(request: Request) -> None:
    """Raises UsageError for an index that is of no use or is no address."""
    index = request.index
    if index is None:
        return
    if request.cpu or request.kind != "train":
        what = "with --cpu" if request.cpu else f"for the {request.kind} image"
        raise UsageError(f"--torch-index is of the train image with CUDA; it does nothing {what}")
    if index != cuda_builds.PYPI and not re.match(r"(https?|file)://\S+$", index):
        raise UsageError(
            f"--torch-index {index!r} is no address",
            f"such as {cuda_builds.BUILDS[-2].index}; or {cuda_builds.PYPI}, for the lock's own",
        )


def _require_driver(of: context.Recipe, request: Request) -> None:
    """Raises RefusedError where this machine's driver is too old for the lock's torch."""
    if of.kind != "train" or of.lock is None:
        return
    command = "runner image build --torch-index {index}"
    lock = context.lock_text(of.lock)
    lines = cuda_builds.refusal(_driver(), lock, request.index, command)
    if lines:
        raise RefusedError(lines[0], "; ".join(lines[1:]))


def _driver() -> str | None:
    """The driver's version; None without one, and where it does not answer."""
    command = module_argv("runner.common.cuda_builds", "driver")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, env=safe_environment()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _settle_base(cli: ContainerCli, base: str, progress: Progress) -> dict[str, str]:
    """The base's labels; it is pulled first where it is not here. Raises RefusedError."""
    if base.startswith("-") or not base.strip():
        raise UsageError(f"--base {base!r} is not an image's name")
    image = find_image(cli, base)
    if image is None:
        code, log = _watch(cli, ["pull", base], progress)
        said = _tail(log)
        with suppress(FileNotFoundError):
            log.unlink()
        if code:
            raise _explain_pull(cli, base, code, said)
        image = require_image(cli, base)
    found = {context.BASE_NAME: base.partition("@")[0], context.BASE_ID: image.id}
    digest = base.partition("@")[2] or _digest(cli, base)
    return found | ({context.BASE_DIGEST: digest} if digest else {})


def _digest(cli: ContainerCli, base: str) -> str | None:
    """The digest that a registry gave the base; None for an image that never was in one."""
    answer = cli.ask(
        "image", "inspect", "--format", "{{range .RepoDigests}}{{println .}}{{end}}", "--", base
    )
    digests = answer.out.split() if answer.code == 0 else []
    return digests[0].partition("@")[2] if digests else None


def _watch(cli: ContainerCli, arguments: Sequence[str], progress: Progress) -> tuple[int, Path]:
    """Run a long call; its exit code and the file that holds all it said.

    On an interrupt the program gets its time to stop what the daemon does for it, then is killed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"runner-{cli.name}-{arguments[0]}-", suffix=".log")
    log = Path(name)
    environment = {**os.environ, "BUILDKIT_PROGRESS": "plain"}
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                cli.argv(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,  # Ctrl-C comes through us, once
            )
            try:
                assert process.stdout is not None  # noqa: S101 - for the type checker
                for line in process.stdout:
                    file.write(line)
                    progress(parse_step(line), line.rstrip())
                code = process.wait()
            except BaseException:
                _stop(process)
                raise
    except BaseException:
        log.unlink()
        raise
    return code, log


def _stop(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])


def _explain_pull(cli: ContainerCli, base: str, code: int, said: str) -> RunnerError:
    answer = Answer(code, "", said)
    low = said.lower()
    if any(
        word in low
        for word in (
            "no space left",
            "cannot connect",
            "docker daemon running",
            "permission denied",
        )
    ):
        return explain(cli, answer)
    unknown = ("manifest unknown", "not found", "access denied", "does not exist")
    if any(word in low for word in unknown) and "lookup" not in low and "dial" not in low:
        return RefusedError(
            f"there is no image {base} to build on: {answer.reason}",
            "--base names another; it may also be one on this machine",
        )
    return RefusedError(
        f"the base {base} can't be pulled: {answer.reason}",
        "check the network and its proxy (docs/images.md); or build where there is one, then "
        "runner image save and load; or --base with an image that is on this machine",
    )


def _explain_build(cli: ContainerCli, code: int, log: Path) -> RunnerError:
    """The refusal for a build that failed; the log stays, and is named."""
    said = _tail(log)
    low = said.lower()
    kept = f"the whole log: {log}"
    if "do not match the hashes" in low:
        wrong = re.search(r"^\s*(\S+==\S+|\S+) from (\S+)", said, re.MULTILINE)
        what = f" ({wrong[1]})" if wrong else ""
        return RefusedError(
            f"a package{what} is not the file that the lock says: its hash differs",
            f"an index or proxy on the way changed it, or the lock is wrong; {kept}",
        )
    if "no space left on device" in low:
        refusal = explain(cli, Answer(code, "", "no space left on device"))
        return RefusedError(refusal.message, f"{refusal.hint}; {kept}")
    if "buildx component is missing" in low or "buildkit is enabled but" in low:
        return RefusedError(
            "DOCKER_BUILDKIT asks for BuildKit, which this docker lacks",
            "unset DOCKER_BUILDKIT: the classic builder makes the same image",
        )
    if "no torch of the locked version from" in low:
        return RefusedError(
            "the index of --torch-index has no torch of the locked version, or can't be reached",
            f"another index, or a lock renewed for a version that it has (./just lock); {kept}",
        )
    if re.search(r"no matching distribution found for torch==\S+\+cpu", low):
        return RefusedError(
            "torch's CPU build is not to be had: PyPI lacks it",
            f"--build-arg EXTRA_INDEX_URL=URL names an index that has it "
            f"(else {context.TORCH_CPU_INDEX}); {kept}",
        )
    network = (
        "temporary failure resolving",
        "temporary failure in name resolution",
        "name or service not known",
        "failed to establish a new connection",
        "network is unreachable",
        "unable to fetch some archives",
        "could not resolve host",
        "failed to fetch",
        "no matching distribution found",
    )
    if any(words in low for words in network):
        return RefusedError(
            "the build can't reach its packages (Debian's or Ubuntu's, PyPI)",
            "a proxy: --build-arg HTTPS_PROXY=URL, and --network host where it listens on this "
            "machine alone; a mirror: --build-arg INDEX_URL=URL; or build "
            f"elsewhere, then runner image save and load; {kept}",
        )
    if "cannot connect" in low or "docker daemon running" in low or "permission denied" in low:
        refusal = explain(cli, Answer(code, "", said))
        return RefusedError(refusal.message, f"{refusal.hint}; {kept}" if refusal.hint else kept)
    return RefusedError(f"the build failed: {Answer(code, '', said).reason}", kept)
