"""A question to the engine (a survey, a fetch, a chat ...) asked where a run would run.

On this machine that is a process of this interpreter; else one in the run's image, with the run's
own limits: read-only, without privileges, without a network unless it is to fetch something.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.container.argv import SECRETS, run_argv, secret_names
from runner.container.caller import this_caller
from runner.container.cli import ContainerCli
from runner.container.images import PYTHON
from runner.container.labels import run_labels, supervisor_label
from runner.container.secrets import secrets_folder, write_secrets
from runner.own_python import module_argv
from runner.plan_base import PlannedContainer, PlannedMount
from runner.sources import cache_folder, hub_cache

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
    program: str | None = None
    secrets: Path | None = None
    """A folder in memory, to be removed by `close`."""

    def abandon(self) -> None:
        """End its container, which outlives the process that started it."""
        if self.name is not None and self.program is not None:
            ContainerCli(self.program).ask("rm", "--force", self.name)

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
    online: bool = False,
    interactive: bool = False,
    gpu_uuids: Sequence[str] = (),
) -> Question:
    """The command that runs `python -m ARGUMENTS`.

    Args:
        container: of the plan; None is this machine.
        arguments: the module and its own arguments.
        reads: paths that a container has to see, besides the caches.
        writes: folders that it may write to.
        online: it reaches the network, and gets the secrets that are for it; `close` it then.
        interactive: whether it reads its standard input.
    """
    if container is None:
        return Question(module_argv(*arguments))
    cli = ContainerCli(container.program)
    cache = cache_folder()
    mounts = {mount.target: mount for mount in reads}
    for folder in (cache, hub_cache().absolute()) if online else (cache,):
        folder.mkdir(parents=True, exist_ok=True)  # docker would make it as root
        mounts[str(folder)] = _writable(folder)
    mounts |= {str(folder): _writable(folder) for folder in writes}
    name = f"runner-ask-{os.getpid()}-{next(_numbers)}"
    asked = container.model_copy(
        update={"network": "bridge" if online else "none", "arguments": [], "secrets": []}
    )
    names = secret_names(asked)
    secrets = secrets_folder(name, names)
    if secrets is not None:
        write_secrets(secrets, names)
    argv = run_argv(
        asked,
        this_caller(cli),
        name=name,
        labels=run_labels(cache, "ask", "", os.geteuid(), supervisor_label()),
        mounts=[mounts[target] for target in sorted(mounts)],
        command=["bash", "-c", _WITH_SECRETS, "runner", *module_argv(*arguments, python=PYTHON)],
        secrets_folder=None if secrets is None else str(secrets),
        workdir="/tmp",  # noqa: S108 - the container's own
        gpu_uuids=gpu_uuids,
        interactive=interactive,
    )
    if interactive and sys.stdin.isatty() and sys.stdout.isatty():
        argv.insert(2, "--tty")
    return Question(argv, name, container.program, secrets)


def _writable(folder: Path) -> PlannedMount:
    return PlannedMount(source=str(folder), target=str(folder), readonly=False)
