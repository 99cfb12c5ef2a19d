"""Who starts a container here, as its command line has to know. Reads the environment and users."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

from runner.common.caches import cache_folder, hub_cache
from runner.containers.cli import ContainerCli
from runner.containers.ready import ask_daemon
from runner.plans.container.argv import Caller


def this_caller(cli: ContainerCli, environment: Mapping[str, str] = os.environ) -> Caller:
    """The calling user, with the names of what is set and where the caches lie.

    Raises:
        RefusedError: the daemon can't be asked.
    """
    daemon = ask_daemon(cli)
    return Caller(
        uid=os.geteuid(),
        gid=os.getegid(),
        groups=tuple(sorted(os.getgroups())),
        name=_name(os.geteuid()),
        rootless=daemon.rootless,
        podman=daemon.is_podman,
        by_cdi=daemon.is_podman or daemon.nvidia == "cdi",
        limits_gpus=daemon.cgroup_version == 2,
        variables=frozenset(name for name, value in environment.items() if value),
        folders={"RUNNER_CACHE": str(cache_folder()), "HF_HUB_CACHE": str(hub_cache().absolute())},
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
