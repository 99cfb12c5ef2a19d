"""Declare the commands that look after the machine: doctor and image.

Signatures and help; each command imports what it needs when it is called, so that `runner --help`
costs a bare Typer app's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.cli.arguments import (
    AsJson,
)


def doctor(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the report is written.")
    ] = Path("validation_report.json"),
    fix: Annotated[
        bool, typer.Option("--fix", help="First end and remove containers that runs left behind.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine: Python, packages, GPU, driver, Docker, disk, network."""
    from runner.cli.doctor import examine_machine

    raise typer.Exit(examine_machine(out, as_json=as_json, fix=fix))


image = typer.Typer(
    name="image",
    help="Build, list, save, load and verify the images that jobs run in.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
ImageName = Annotated[
    str | None, typer.Argument(metavar="[IMAGE]", help="Its name or id [the train image].")
]


@image.command("build")
def image_build(
    kind: Annotated[str, typer.Argument(metavar="[train|mgm]", help="Which image.")] = "train",
    base: Annotated[
        str | None, typer.Option("--base", metavar="REF", help="Build on this image instead.")
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="torch's CPU build on Debian, without CUDA.")
    ] = False,
    build_arg: Annotated[
        list[str] | None,
        typer.Option("--build-arg", metavar="NAME=VALUE", help="As docker's; may be repeated."),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Run every step again, without the cache.")
    ] = False,
    network: Annotated[
        str | None,
        typer.Option("--network", metavar="NAME", help="Of the build, as docker's; such as host."),
    ] = None,
    toolkit: Annotated[
        Path | None,
        typer.Option("--toolkit", metavar="DIR", help="mgm: this copy, instead of cloning it."),
    ] = None,
    torch_index: Annotated[
        str | None,
        typer.Option(
            "--torch-index",
            metavar="URL",
            help="train: the locked torch from this index, for a driver older than its CUDA "
            "[RUNNER_TORCH_INDEX]; pypi: the lock's own all the same.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build an image from its Dockerfile and lock; print its content and labels."""
    from runner.cli.image import build_image

    code = build_image(
        kind,
        base=base,
        cpu=cpu,
        arguments=tuple(build_arg or ()),
        no_cache=no_cache,
        network=network,
        toolkit=toolkit,
        torch_index=torch_index,
        as_json=as_json,
    )
    raise typer.Exit(code)


@image.command("list")
def image_list(as_json: AsJson = False) -> None:
    """List the images that runner built, and whether they are what it would build now."""
    from runner.cli.image import list_all

    raise typer.Exit(list_all(as_json=as_json))


@image.command("save")
def image_save(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".tar, .tar.gz or .tar.zst.")],
    name: ImageName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an image to a file, its checksum beside it, for a machine without a registry."""
    from runner.cli.image import save_image

    raise typer.Exit(save_image(file, name, force=force, as_json=as_json))


@image.command("load")
def image_load(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `image save` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Load an image from a file, checked against the checksum beside it."""
    from runner.cli.image import load_image

    raise typer.Exit(load_image(file, as_json=as_json))


@image.command("verify")
def image_verify(name: ImageName = None, as_json: AsJson = False) -> None:
    """Check whether an image matches the lock and the code here; exit code 1 if not."""
    from runner.cli.image import verify_image

    raise typer.Exit(verify_image(name, as_json=as_json))
