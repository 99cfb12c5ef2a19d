"""Find the images on this machine, compare them with this runner's lock and code, look inside.

Standard library and runner's own modules; runs the container program, and short containers to read
what an image holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner import __version__
from runner.common import durable
from runner.common.caches import cache_folder
from runner.common.errors import RefusedError
from runner.containers import context, locks
from runner.containers.cli import TIMED_OUT, Answer, ContainerCli, explain

TRAIN = "runner-train"
MGM = "runner-mgm"
FACTS_FILE = "/opt/runner/image.json"
PACKAGE_FOLDER = "/opt/runner/package"
PYTHON = "/opt/runner/bin/python"
LOOK_SECONDS = 300.0  # the first container of a fresh image waits for its layers to be unpacked

# What a distribution's venv brings by itself; no lock names them.
_OF_THE_VENV = {"pip", "wheel"}


@dataclass(frozen=True)
class Image:
    """One image as the container program knows it."""

    name: str
    """As it was asked for, or its first tag; its short id where it has none."""
    id: str
    """sha256:…, of its configuration: the same content has the same id everywhere."""
    labels: Mapping[str, str]
    size_bytes: int
    created: str
    """RFC 3339."""

    @property
    def kind(self) -> str | None:
        """train or mgm; None for an image that runner did not build."""
        return self.labels.get(context.KIND)

    @property
    def short_id(self) -> str:
        return self.id.removeprefix("sha256:")[:12]


@dataclass(frozen=True)
class ImageFacts:
    """What an image holds, known without starting torch."""

    python: str | None
    """Python's version; None where the image does not say."""
    packages: Mapping[str, str]
    """Canonical name to version; empty where the image does not say."""
    cuda: str | None
    """The CUDA version that torch was built for; None for a CPU build."""
    system: str | None = None
    """Such as "Ubuntu 24.04.1 LTS"."""


@dataclass(frozen=True)
class Verification:
    """What `runner image verify` found."""

    image: Image
    differences: tuple[str, ...]
    """In words, what is not as this runner's lock and code say; none where all is."""
    packages: int | None
    """How many installed packages were compared; None where that was not possible."""
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.differences


def default_name(kind: str) -> str:
    """The name and tag under which an image of a kind is built: "runner-train:0.1.0"."""
    return f"runner-{kind}:{__version__}"


def is_own_name(name: str) -> bool:
    """Whether it is an image that `runner` takes by itself, not one that a job names."""
    return name in {default_name(kind) for kind in context.KINDS}


def find_image(cli: ContainerCli, name: str) -> Image | None:
    """The image of a name or id; None where there is none here.

    Raises RefusedError where the program can't be asked.
    """
    answer = cli.ask("image", "inspect", "--", name) if name else Answer(1, "", "no such image")
    if answer.code == 0:
        return _image(json.loads(answer.out)[0], name)
    if is_absent(answer):
        return None
    raise explain(cli, answer)


def is_absent(answer: Answer) -> bool:
    """Whether the program said that it knows no such image (Docker 20.10 to 28, Podman 4)."""
    said = answer.err.lower()
    return any(
        words in said
        for words in ("no such image", "no such object", "image not known", "invalid reference")
    )


def require_image(cli: ContainerCli, name: str) -> Image:
    """As find_image. Raises RefusedError, with the way out, where there is none."""
    image = find_image(cli, name)
    if image is not None:
        return image
    kind = next((kind for kind in context.KINDS if name == default_name(kind)), None)
    raise RefusedError(
        f"there is no image {name} on this machine",
        f"runner image build {kind}; or runner image load FILE"
        if kind
        else f"{cli.name} pull {name}; runner image list shows what runner built",
    )


def list_images(cli: ContainerCli) -> list[Image]:
    """All images that runner built, newest first. Raises RefusedError as find_image does."""
    listed = cli.require(
        "image", "ls", "--quiet", "--no-trunc", "--filter", f"label={context.KIND}"
    )
    ids = list(dict.fromkeys(listed.split()))
    if not ids:
        return []
    images = [_image(record, None) for record in json.loads(cli.require("image", "inspect", *ids))]
    return sorted(images, key=lambda image: image.created, reverse=True)


def stale(image: Image) -> str | None:
    """Why an image is not what this runner's lock and code say; None where it is."""
    kind = image.kind
    if kind is None:
        return "runner did not build it: it has none of its labels"
    if kind not in context.KINDS:
        return f"it is of a kind that this runner does not know: {kind!r}"
    lock = image.labels.get(context.LOCK_FILE)
    of = context.recipe(kind, lock=lock)
    reasons = []
    if lock and image.labels.get(context.LOCK) != context.lock_sha256(lock):
        reasons.append(f"its packages are of another {lock}")
    if image.labels.get(context.RECIPE) != context.recipe_sha256(of):
        reasons.append(f"it was built by another {of.dockerfile}")
    if image.labels.get(context.SOURCE) != context.source_sha256(of):
        version = image.labels.get(context.VERSION)
        other = f", of version {version}" if version != __version__ else ""
        reasons.append(f"its code is not this runner's{other}")
    return "; ".join(reasons) or None


def image_facts(cli: ContainerCli, image: Image) -> ImageFacts:
    """What the image holds, from the file that its build left in it; asked once for each image.

    An image without that file gives None and no packages. Raises RefusedError where no container
    can be started.
    """
    cached = cache_folder() / "images" / f"{image.id.removeprefix('sha256:')}.json"
    record = durable.read_json(cached)
    if not isinstance(record, dict):
        record = _facts_record(cli, image)
        cached.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(cached, record)
    packages = record.get("packages")
    return ImageFacts(
        record.get("python"),
        packages if isinstance(packages, dict) else {},
        record.get("cuda"),
        record.get("system"),
    )


def verify(cli: ContainerCli, image: Image) -> Verification:
    """Compare an image with this runner: labels, the packages really installed, the code inside.

    Raises RefusedError where no container can be started.
    """
    reason = stale(image)
    if image.kind not in context.KINDS:
        return Verification(image, (reason or "",), None)
    differences = reason.split("; ") if reason else []
    lock = image.labels.get(context.LOCK_FILE)
    if lock is None and not context.recipe(image.kind).has_package:
        return Verification(image, tuple(differences), None)  # its recipe alone tells what it is
    inside = _look_inside(cli, image)
    if inside is None:
        return Verification(image, (*differences, f"{PYTHON} does not run in it"), None)
    installed: dict[str, str] = inside["packages"]
    compared = None
    if lock and context.lock_sha256(lock):
        entries = locks.read_lock(context.lock_text(lock))
        wanted = locks.installs(entries, python=inside["python"], machine=inside["machine"])
        if image.labels.get(context.TORCH_INDEX):
            wanted, installed = _apart_from_cuda(wanted), _apart_from_cuda(installed)
        differences += package_differences(wanted, installed)
        compared = len(wanted)
    if inside["source"] is not None and inside["source"] != image.labels.get(context.SOURCE):
        differences.append(f"the files in {PACKAGE_FOLDER} are not those that it was built with")
    return Verification(image, tuple(differences), compared, inside)


def _apart_from_cuda(versions: Mapping[str, str]) -> dict[str, str]:
    """What another index's torch has in common with the lock: all but CUDA's own packages."""
    return {
        name: version.partition("+")[0] if name == "torch" else version
        for name, version in versions.items()
        if not locks.is_of_cuda(name)
    }


def package_differences(wanted: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """What is installed otherwise than a lock says, in words, a line a package."""
    found = []
    for name in sorted({*wanted, *installed}):
        here, there = wanted.get(name), installed.get(name)
        if here == there or (here is None and name in _OF_THE_VENV):
            continue
        if there is None:
            found.append(f"{name}: the lock says {here}, it is not installed")
        elif here is None:
            found.append(f"{name}: {there} is installed, the lock has none")
        else:
            found.append(f"{name}: the lock says {here}, {there} is installed")
    return found


def look_arguments(image: Image, entry: str, *arguments: str) -> list[str]:
    """A container that only reads: no network, no writing, gone afterwards."""
    options = ("--rm", "--network", "none", "--read-only", "--cap-drop", "ALL")
    gpus = ("--env", "NVIDIA_VISIBLE_DEVICES=void")  # nor a GPU, where nvidia's runtime is default
    return ["run", *options, *gpus, "--entrypoint", entry, image.id, *arguments]


# Prints versions and the hash of runner's files as runner.containers.context.tree_sha256 makes it.
_INSIDE = f"""
import hashlib, importlib.metadata, json, pathlib, platform, re
root = pathlib.Path({PACKAGE_FOLDER!r})
whole = hashlib.sha256()
names = sorted(
    path.relative_to(root).as_posix() for path in root.rglob("*")
    if path.is_file() and path.suffix != ".pyc"
)
for name in names:
    digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
    whole.update(f"{{name}}\\0{{digest}}\\n".encode())
packages = {{
    re.sub(r"[-_.]+", "-", found.name).lower(): found.version
    for found in importlib.metadata.distributions()
}}
print(json.dumps({{
    "python": platform.python_version(), "machine": platform.machine(),
    "packages": packages, "source": whole.hexdigest() if names else None,
}}))
"""


def _look_inside(cli: ContainerCli, image: Image) -> dict[str, Any] | None:
    """Versions and hashes as they are inside now; None where its Python does not run."""
    asked = look_arguments(image, PYTHON, "-I", "-c", _INSIDE)
    answer = cli.ask(*asked, timeout_seconds=LOOK_SECONDS)
    if answer.code == 0:
        found: dict[str, object] = json.loads(answer.out)
        return found
    if _is_of_the_program(answer):
        raise explain(cli, answer)
    return None


def _facts_record(cli: ContainerCli, image: Image) -> dict[str, Any]:
    asked = look_arguments(image, "cat", FACTS_FILE)
    answer = cli.ask(*asked, timeout_seconds=LOOK_SECONDS)
    if answer.code == 0:
        try:
            record = json.loads(answer.out)
        except ValueError:
            record = None
        return record if isinstance(record, dict) else {}
    if _is_of_the_program(answer):
        raise explain(cli, answer)
    return {}


def _is_of_the_program(answer: Answer) -> bool:
    """Whether a run failed for want of a container, not by what ran, or is not there, in it."""
    said = answer.err.lower()
    no_entry = "executable file" in said or "no such file or directory" in said
    return answer.code in (TIMED_OUT, 125, 126) or (answer.code == 127 and not no_entry)


def _image(record: Mapping[str, Any], name: str | None) -> Image:
    identity = str(record["Id"])
    identity = identity if identity.startswith("sha256:") else f"sha256:{identity}"
    tags = [tag for tag in record.get("RepoTags") or [] if tag != "<none>:<none>"]
    settings = record.get("Config") or {}
    return Image(
        name or (tags[0].removeprefix("localhost/") if tags else identity[7:19]),
        identity,
        settings.get("Labels") or record.get("Labels") or {},
        int(record.get("Size") or 0),
        str(record.get("Created") or ""),
    )
