"""Build, list, save, load and verify the images that jobs run in. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import RefusedError, UsageError
from runner.containers import archive, context
from runner.containers.build import Progress as BuildProgress
from runner.containers.build import Request, Step, build
from runner.containers.cli import require_cli
from runner.containers.images import (
    Image,
    ImageFacts,
    default_name,
    image_facts,
    list_images,
    require_image,
    stale,
    verify,
)

__all__ = [
    "BuildProgress",
    "BuiltImage",
    "CheckedImage",
    "KnownImage",
    "LoadedImages",
    "Meter",
    "SavedImage",
    "Step",
    "build_image",
    "known_images",
    "load_image",
    "save_image",
    "verify_image",
]

Meter = Callable[[str, int | None], Callable[[int], None]]
"""Gives for a kind of work ("saving") and its bytes, where known, who is told of bytes handled."""


@dataclass(frozen=True)
class KnownImage:
    """An image of this machine, and whether it is what this runner would build."""

    image: Image
    stale: str | None
    """Why it is not; None where it is."""

    @property
    def labels(self) -> list[tuple[str, str]]:
        """Those that runner gives, by name."""
        prefixes = ("dev.runner.", "org.opencontainers.image.")
        return sorted((k, v) for k, v in self.image.labels.items() if k.startswith(prefixes))

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.image.name,
            "id": self.image.id,
            "kind": self.image.kind,
            "size_bytes": self.image.size_bytes,
            "created": self.image.created,
            "stale": self.stale,
            "labels": dict(self.labels),
        }


@dataclass(frozen=True)
class BuiltImage:
    """An image that was built just now."""

    known: KnownImage
    seconds: float
    facts: ImageFacts | None
    """What it holds; None where that can't be asked."""
    why_unknown: str
    """Why it can't; empty where it can."""


@dataclass(frozen=True)
class SavedImage:
    """An image in a file."""

    known: KnownImage
    path: Path
    size_bytes: int
    sha256: str
    checksum_file: Path


@dataclass(frozen=True)
class LoadedImages:
    """What a file brought."""

    images: list[KnownImage]
    sha256: str | None
    """Of the file, held against the checksum beside it; None where there is none."""
    checksum_file: Path


@dataclass(frozen=True)
class CheckedImage:
    """An image held against this runner's lock and code."""

    known: KnownImage
    differences: tuple[str, ...]
    """In words; none where all is as it should be."""
    packages: int | None
    """How many were compared; None where that was not possible."""
    lock: str | None
    """The lock's file name."""
    rebuild_command: str | None
    """None for an image that runner doesn't build."""

    @property
    def ok(self) -> bool:
        return not self.differences


def build_image(
    kind: str,
    progress: BuildProgress,
    *,
    base: str | None = None,
    cpu: bool = False,
    arguments: tuple[str, ...] = (),
    no_cache: bool = False,
    network: str | None = None,
    toolkit: Path | None = None,
    torch_index: str | None = None,
) -> BuiltImage:
    """Build an image, and ask what it holds.

    Args:
        kind: train or mgm.
        progress: is told each line of the builder's output.
        base, cpu, ...: as containers.build.Request says.

    Raises RefusedError where the build fails; UsageError for a request that can't be met.
    """
    cli = require_cli()
    request = Request(kind, base, cpu, arguments, no_cache, network, toolkit, torch_index)
    begun = time.monotonic()
    image = build(cli, request, progress)
    seconds = time.monotonic() - begun
    facts, why = None, ""
    try:
        facts = image_facts(cli, image)
    except RefusedError as error:  # it is built all the same
        why = error.message
    return BuiltImage(_known(image), seconds, facts, why)


def known_images() -> list[KnownImage]:
    """The images that runner built, newest first. Raises RefusedError where none can be asked."""
    return [_known(image) for image in list_images(require_cli())]


def save_image(path: Path, name: str | None, meter: Meter, *, force: bool = False) -> SavedImage:
    """Write an image to a file, its checksum beside it, whole or not at all.

    Args:
        name: its name or id; None is the train image.

    Raises:
        UsageError: the file's suffix, or it is there and not `force`.
        RefusedError: there is no such image, or the disk refuses.
    """
    cli = require_cli()
    image = require_image(cli, name or default_name("train"))
    progress = meter("saving", image.size_bytes)
    saved = archive.save(cli, image, path, force=force, progress=progress)
    beside = archive.checksum_file(saved.path)
    return SavedImage(_known(image), saved.path, saved.size_bytes, saved.sha256, beside)


def load_image(path: Path, meter: Meter) -> LoadedImages:
    """Load the images of a file.

    Raises:
        UsageError: there is no such file.
        RefusedError: it is damaged (nothing is loaded then), or can't be loaded.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    cli = require_cli()
    checked = archive.check(path, meter("checking", path.stat().st_size))
    names = archive.load(cli, path, meter("loading", None))
    images = [_known(require_image(cli, name)) for name in names]
    return LoadedImages(images, checked, archive.checksum_file(path))


def verify_image(name: str | None) -> CheckedImage:
    """Hold an image against this runner's lock and code.

    Args:
        name: its name or id; None is the train image.

    Raises RefusedError where there is no such image, or no container can be started.
    """
    cli = require_cli()
    image = require_image(cli, name or default_name("train"))
    found = verify(cli, image)
    lock = image.labels.get(context.LOCK_FILE)
    return CheckedImage(_known(image), found.differences, found.packages, lock, _rebuild(image))


def _rebuild(image: Image) -> str | None:
    """The command that builds it as it should be."""
    if image.kind not in context.KINDS:
        return None
    how = " --cpu" if image.labels.get(context.LOCK_FILE) == "train-cpu.lock" else ""
    if index := image.labels.get(context.TORCH_INDEX):
        how = f" --torch-index {index}"
    return f"runner image build {image.kind}{how}"


def _known(image: Image) -> KnownImage:
    return KnownImage(image, stale(image))
