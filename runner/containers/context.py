"""What an image is built from: its recipe, the files that go into it, their hashes, its labels.

Standard library, runner.common.packaged and runner.common.errors only. Reads files and git; writes
only the build context, into a folder that it is given.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import runner
from runner.common.errors import RefusedError, UsageError
from runner.common.packaged import docker_folder, jobs_folder, templates_folder

KINDS = ("train", "mgm")

KIND = "dev.runner.kind"
LOCK = "dev.runner.lock"
"""sha256 of the lock file that the image's packages are from."""
LOCK_FILE = "dev.runner.lock.file"
SOURCE = "dev.runner.source"
"""sha256 over runner's own files in the image."""
RECIPE = "dev.runner.recipe"
"""sha256 over the Dockerfile and the small files beside it that it copies."""
DIRTY = "dev.runner.dirty"
"""Whether the checkout had uncommitted changes in what the image is made of; absent without git."""
TORCH_INDEX = "dev.runner.torch.index"
"""Where torch and its CUDA libraries are from, where not the lock's files; absent else."""
BASE_ID = "dev.runner.base.id"
REVISION = "org.opencontainers.image.revision"
VERSION = "org.opencontainers.image.version"
BASE_NAME = "org.opencontainers.image.base.name"
BASE_DIGEST = "org.opencontainers.image.base.digest"

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# bookworm's Python is 3.11; the digest is of the multi-arch index
CPU_BASE = (
    "debian:bookworm-slim@sha256:96e378d7e6531ac9a15ad505478fcc2e69f371b10f5cdf87857c4b8188404716"
)

PLACEHOLDER = ".toolkit-may-be-absent"
"""Always in a context, so that a COPY of it and of toolkit* finds something."""

_TIME = 315532800  # 1980: a file's time is no part of an image, so it is the same for all
_UNWANTED = {"__pycache__", "_packaged"}


@dataclass(frozen=True)
class Recipe:
    """How one kind of image is made."""

    kind: str
    dockerfile: str
    """The Dockerfile's name in docker/."""
    lock: str | None
    """The lock's name in docker/; None where the Dockerfile has none."""
    default_base: str | None
    """What its ARG BASE says."""
    copies: tuple[str, ...]
    """What it copies from the context, as it says so ("runner", "docker/train.lock")."""

    @property
    def has_package(self) -> bool:
        """Whether runner's own code is in the image."""
        return "runner" in self.copies


def recipe(kind: str, *, lock: str | None = None) -> Recipe:
    """The recipe of a kind, with another lock than the Dockerfile's own where one is named.

    Raises UsageError for an unknown kind and RefusedError where the Dockerfile is not here.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no image {kind!r}", f"one of: {', '.join(KINDS)}")
    path = docker_folder() / f"{kind}.Dockerfile"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RefusedError(f"the recipe of the {kind} image can't be read: {error}") from None
    arguments = dict(re.findall(r"^ARG (\w+)=(\S*)", text, re.MULTILINE))
    lock = lock or arguments.get("LOCK") or _only_lock(kind)
    copies: list[str] = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = line.split()
        if words[:1] in (["COPY"], ["ADD"]) and not any(w.startswith("--from") for w in words):
            sources = [word for word in words[1:-1] if not word.startswith("--")]
            copies.extend(source.replace("${LOCK}", lock or "") for source in sources)
    return Recipe(kind, path.name, lock, arguments.get("BASE"), tuple(copies))


def _only_lock(kind: str) -> str | None:
    name = f"{kind}.lock"
    return name if (docker_folder() / name).is_file() else None


def lock_text(name: str) -> str:
    """A lock's content. Raises RefusedError where it is not here."""
    try:
        return (docker_folder() / name).read_text(encoding="utf-8")
    except OSError as error:
        raise RefusedError(f"the lock {name} can't be read: {error}") from None


def lock_sha256(name: str) -> str | None:
    """The hash of a lock in docker/; None where there is no such lock."""
    path = docker_folder() / name
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def source_sha256(of: Recipe) -> str:
    """One hash over runner's own files that go into the image: paths and contents."""
    wanted = [name for name in of.copies if not name.startswith(("docker", "toolkit"))]
    return tree_sha256(_files(wanted))


def package_files() -> list[tuple[str, Path]]:
    """(name, place here) of runner's own files, as the train image has them; in an image too."""
    return _files(["jobs", "runner", "shell"])


def recipe_sha256(of: Recipe) -> str:
    """One hash over the Dockerfile and what it copies of docker/, but for the lock."""
    beside = [name for name in of.copies if name.startswith("docker") and name != _lock_path(of)]
    files = [(name, path) for name, path in _files(beside) if name != _lock_path(of)]
    return tree_sha256([*files, (f"docker/{of.dockerfile}", docker_folder() / of.dockerfile)])


def tree_sha256(files: list[tuple[str, Path]]) -> str:
    """sha256 over `NAME NUL SHA256 LF` of each file, by name; images.verify does so inside."""
    whole = hashlib.sha256()
    for name, path in sorted(set(files)):
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def assemble(folder: Path, toolkit: Path | None = None) -> None:
    """Lay the build context into an empty folder: the same from a checkout and from a wheel.

    Modes and times are set, so that neither a umask nor a clone makes another image. `toolkit` is
    copied as it is, to toolkit/. Raises OSError.
    """
    (folder / PLACEHOLDER).touch()
    (folder / PLACEHOLDER).chmod(0o644)
    for name, path in _files(["docker", "jobs", "runner", "shell"]):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        place.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    if toolkit is not None:
        shutil.copytree(toolkit, folder / "toolkit", symlinks=True)
    for root, _folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.utime(Path(root, name), (_TIME, _TIME), follow_symlinks=False)
        Path(root).chmod(0o755)
        os.utime(root, (_TIME, _TIME))


def labels(of: Recipe, base: dict[str, str]) -> dict[str, str]:
    """The labels of an image built now; `base` has those that tell its base."""
    found = {
        KIND: of.kind,
        VERSION: runner.__version__,
        SOURCE: source_sha256(of),
        RECIPE: recipe_sha256(of),
        **base,
        **_commit(),
    }
    if of.lock:
        found |= {LOCK_FILE: of.lock, LOCK: lock_sha256(of.lock) or ""}
    return dict(sorted(found.items()))


def _lock_path(of: Recipe) -> str:
    return f"docker/{of.lock}"


def _files(wanted: list[str]) -> list[tuple[str, Path]]:
    """(name in the context, place here) of the files that the names, folders or patterns cover."""
    roots = {
        "docker": docker_folder(),
        "jobs": jobs_folder(),
        "runner": Path(runner.__file__).resolve().parent,
        "shell": templates_folder(),
    }
    found: list[tuple[str, Path]] = []
    for name in wanted:
        first, _, rest = name.rstrip("/").partition("/")
        root = roots.get(first)
        if root is None:
            continue
        places = sorted(root.glob(rest)) if rest else [root]
        files = [file for place in places for file in _covered(place)]
        found.extend((f"{first}/{file.relative_to(root).as_posix()}", file) for file in files)
    return found


def _covered(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    else:
        yield from _walk(place)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _UNWANTED or path.name.startswith(".") or path.suffix in (".pyc", ".tmp"):
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path


def _commit() -> dict[str, str]:
    """The checkout's commit and whether it was changed; nothing for a wheel, or without git."""
    root = docker_folder().parent
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", "docker", "jobs", "runner", "shell")
    found = {REVISION: revision} if revision else {}
    return found | ({DIRTY: str(bool(changed)).lower()} if changed is not None else {})
