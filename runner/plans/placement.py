"""Decide where a job will run, in a container or as processes of this machine, and say why.

Runs the container program; imports no training library. Every start prints what `launch.on: auto`
came to.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Literal

from runner.common.errors import RefusedError, UsageError, nearest
from runner.common.packages import package_version
from runner.containers.cli import ContainerCli, find_cli, require_cli
from runner.containers.images import (
    PYTHON,
    Image,
    ImageFacts,
    default_name,
    find_image,
    image_facts,
    stale,
)
from runner.jobs.base import Job

ON_VARIABLE = "RUNNER_ON"
"""What launch.on: auto means to this user: local or docker."""


@dataclass(frozen=True)
class Container:
    """The image a run starts in, and who starts it."""

    cli: ContainerCli
    image: Image
    facts: ImageFacts

    @property
    def native(self) -> bool:
        """Whether one of runner's images is in it, itself or as its base: venv, tini."""
        return self.image.kind is not None


@dataclass(frozen=True)
class Placement:
    """Where the launch script runs."""

    container: Container | None
    why: str
    """In a few words, for the line that every start prints."""

    @property
    def short(self) -> str:
        return f"in the image {self.container.image.name}" if self.container else "here"

    @property
    def line(self) -> str:
        """For people: where, and why."""
        return self.line_of(sys.executable)

    def line_of(self, python: str) -> str:
        """The same; `python` is the interpreter that trains where it is a process of this machine:
        an engine may have one of its own."""
        if self.container is None:
            return f"this machine, {python}" + (f" ({self.why})" if self.why else "")
        image, cli = self.container.image, self.container.cli
        return f"{cli.name}, image {image.name} {image.id[:19]}" + (
            f" ({self.why})" if self.why else ""
        )

    @property
    def python(self) -> str:
        """The interpreter that trains there."""
        if self.container is None:
            return sys.executable
        return PYTHON if self.container.native else "python3"

    def version(self, package: str) -> str | None:
        """The version of a package there; None where it is absent, or that is not known."""
        if self.container is None:
            return package_version(package)
        return self.container.facts.packages.get(package)


HERE = Placement(None, "")


def settle_place(job: Job) -> Placement:
    """Where a job runs by its launch.on and what this machine has.

    Raises:
        RefusedError: launch.on is docker, and Docker or the image can't be used.
        UsageError: $RUNNER_ON is neither local nor docker.
    """
    wanted, why = _wanted(job)
    if wanted == "local":
        return Placement(None, why)
    kind = "mgm" if engine_of(job) == "mgm" else "train"
    name = job.container.image or default_name(kind)
    if wanted == "docker":
        return Placement(_container(require_cli(), name, job, kind), why)
    cli = find_cli()
    if cli is None:
        return Placement(None, "there is no docker")
    try:
        return Placement(_container(cli, name, job, kind), why)
    except RefusedError as error:
        return Placement(None, f"not in docker: {error.message}")


def engine_of(job: Job) -> str:
    """The engine that a job names."""
    return str(getattr(job, "engine", ""))


def _wanted(job: Job) -> tuple[Literal["auto", "local", "docker"], str]:
    if job.launch.on != "auto":
        return job.launch.on, f"launch.on is {job.launch.on}"
    said = os.environ.get(ON_VARIABLE, "auto")
    if said == "local":
        return "local", f"{ON_VARIABLE}=local"
    if said == "docker":
        return "docker", f"{ON_VARIABLE}=docker"
    if said in ("auto", ""):
        return "auto", ""
    near = nearest(said, ["auto", "local", "docker"])
    raise UsageError(
        f"{ON_VARIABLE} is {said!r}; it can be auto, local or docker",
        f"nearest: {near}" if near else None,
    )


def _container(cli: ContainerCli, name: str, job: Job, kind: str) -> Container:
    """Raises RefusedError where the image is not there, or can't run this job."""
    image = find_image(cli, name)
    if image is None:
        if job.container.image:
            raise RefusedError(
                f"{cli.name} has no image {name} (container.image)",
                f"{cli.name} pull {name}; nothing is pulled unasked",
            )
        raise RefusedError(
            f"there is no image {name} yet", f"runner image build {kind} makes it; or --on local"
        )
    own = job.container.image is None
    old = stale(image)
    if own and old is not None:
        raise RefusedError(
            f"the image {name} is of another state of runner: {old}",
            f"runner image build {kind} brings it up to date, in seconds where only code changed",
        )
    if image.kind != "train" and engine_of(job) == "sft":
        raise RefusedError(
            f"the image {name} (container.image) holds no runner, which a job of engine sft needs",
            "build yours on runner's (runner image build --base IMAGE), or leave container.image "
            "out",
        )
    return Container(cli, image, image_facts(cli, image))
