"""Make the command of one engine process (a survey, a fetch, a chat ...), to run where the run
would. On this machine that is a process of this interpreter; else one in the run's image, with
the run's own limits: read-only, without privileges, without a network unless it has to download.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.common.caches import cache_folder, hub_cache
from runner.common.errors import RefusedError
from runner.common.own_python import module_argv
from runner.containers.cli import ContainerCli, require_cli
from runner.containers.images import PYTHON, is_own_name
from runner.containers.labels import run_labels, supervisor_label
from runner.containers.private import make_private
from runner.containers.secrets import have_secrets, write_secrets
from runner.plans.base import PlannedContainer, PlannedMount
from runner.plans.container.argv import HUB_SECRETS, SECRETS, run_argv, secret_names
from runner.plans.container.caller import this_caller
from runner.plans.container.overlays import over, run_overlays
from runner.runs.folder import RunFolder

FETCHED = ("data", "models", "modelscope")
"""Of the cache: what a fetch brings."""
_numbers = itertools.count(1)
_WITH_SECRETS = (
    f'for file in {SECRETS}/*; do [ -f "$file" ] && export "${{file##*/}}=$(<"$file")"; done; '
    'exec "$@"'
)


@dataclass(frozen=True)
class Question:
    """A command line, and how to see that nothing of it is left."""

    argv: list[str]
    name: str | None = None
    """Of the container; None where there is none."""
    cli: ContainerCli | None = None
    secrets: Path | None = None
    """A folder in memory, to be removed by `close`."""

    def abandon(self) -> None:
        """End its container, which outlives the process that started it."""
        if self.name is not None and self.cli is not None:
            self.cli.ask("rm", "--force", self.name)

    def close(self) -> None:
        """Remove its secrets, once it has been answered."""
        if self.secrets is not None:
            shutil.rmtree(self.secrets, ignore_errors=True)


def question(
    container: PlannedContainer | None,
    arguments: Sequence[str],
    *,
    reads: Iterable[PlannedMount] = (),
    writes: Iterable[Path] = (),
    caches: Iterable[str] = (),
    environment: bool = False,
    online: bool = False,
    interactive: bool = False,
    gpu_uuids: Sequence[str] = (),
) -> Question:
    """The command that runs `python -m ARGUMENTS`.

    Args:
        container: of the plan; None is this machine. Its program is not taken from there.
        arguments: the module and its own arguments.
        reads: paths that a container has to see, besides runner's cache.
        writes: folders that it may write to; of a run's folder not what is the host's.
        caches: folders of runner's cache that it may write to, by name; the rest is read-only.
        environment: what container.environment names is passed on: for the plan of the user's own
            job, never for one that a record brings.
        online: it reaches the network to fetch something: FETCHED and the hub's cache can be
            written, and it gets the hubs' secrets; `close` it then.
        interactive: whether it reads its standard input.

    Raises:
        RefusedError: there is no container program, or no place for secrets.
    """
    if container is None:
        return Question(module_argv(*arguments))
    cli = require_cli()
    cache = cache_folder()
    open_to_it = [cache / name for name in (*caches, *(FETCHED if online else ()))]
    if online:
        open_to_it.append(hub_cache().absolute())
    for folder in (cache, *open_to_it):
        folder.mkdir(parents=True, exist_ok=True)  # docker would make it as root
    closed = PlannedMount(source=str(cache), target=str(cache))
    mounts = over([*reads], [closed, *map(_writable, open_to_it)])
    for folder in writes:
        mounts = over(mounts, [_writable(folder)])
        if (folder / "plan.yaml").is_file():
            mounts = over(mounts, run_overlays(RunFolder(folder)))
    name = f"runner-ask-{os.getpid()}-{next(_numbers)}"
    asked = container.model_copy(
        update={
            "network": "bridge" if online else "none",
            "arguments": [],
            "secrets": _hub_secrets(container) if online else [],
            "environment": container.environment if environment else [],
        }
    )
    names = secret_names(asked)
    secrets = None
    if have_secrets(names):
        try:
            secrets = make_private()
            write_secrets(secrets / "secrets", names)
        except OSError as error:
            raise RefusedError(f"secrets can't be put into memory: {error}") from None
    argv = run_argv(
        asked,
        this_caller(cli),
        program=cli.program,
        name=name,
        labels=run_labels(cache, "ask", "", os.geteuid(), supervisor_label()),
        mounts=mounts,
        command=["bash", "-c", _WITH_SECRETS, "runner", *module_argv(*arguments, python=PYTHON)],
        secrets_folder=None if secrets is None else str(secrets / "secrets"),
        workdir="/tmp",  # noqa: S108 - the container's own
        gpu_uuids=gpu_uuids,
        interactive=interactive,
    )
    if interactive and sys.stdin.isatty() and sys.stdout.isatty():
        argv.insert(2, "--tty")
    return Question(argv, name, cli, secrets)


def _hub_secrets(container: PlannedContainer) -> list[str]:
    """What a fetch may have: in an image of runner's own all hubs' tokens, else the named ones."""
    named = secret_names(container)
    return [name for name in HUB_SECRETS if is_own_name(container.image) or name in named]


def _writable(folder: Path) -> PlannedMount:
    return PlannedMount(source=str(folder), target=str(folder), readonly=False)
