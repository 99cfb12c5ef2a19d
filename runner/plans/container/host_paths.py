"""Paths of the host that a container must not see, or not write, unless the user says so.

Pure but for `this_host`, which asks where things are. Imports the standard library and what knows
runner's own places.
"""

from __future__ import annotations

import itertools
import os
import pwd
import stat
from dataclasses import dataclass, field
from pathlib import Path

from runner.common.caches import cache_folder
from runner.common.state_folder import state_folder
from runner.plans.container.mounts import PREPARED

_KERNEL = ("/proc", "/sys", "/dev", "/run", "/var/run", "/etc")
_AMONG_THEM = ("/dev/shm", "/run/media")  # noqa: S108 - where users keep data: what lies in them
_READABLE = (
    *("/etc/ca-certificates", "/etc/hosts", "/etc/localtime", "/etc/pki", "/etc/resolv.conf"),
    *("/etc/ssl", "/etc/timezone"),
)
_SYSTEM = ("/bin", "/boot", "/lib", "/lib32", "/lib64", "/opt", "/sbin", "/usr")
_SYSTEM_DATA = ("/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/spool")
_SHARED = ("/home", "/mnt", "/media", "/srv", "/tmp", "/var", "/var/lib", "/var/tmp")  # noqa: S108
_CREDENTIALS = (
    *(".aws", ".azure", ".config", ".docker", ".git-credentials", ".gnupg", ".kube", ".mozilla"),
    *(".netrc", ".password-store", ".pypirc", ".ssh"),
    ".cache/huggingface/token",
)


@dataclass(frozen=True)
class Host:
    """Where things are on this machine, as real paths."""

    homes: tuple[Path, ...]
    state: Path
    """runner's own, with the key of the seals."""
    cache: Path
    runs: Path
    sockets: frozenset[Path] = field(default_factory=frozenset)
    """Those of the paths in question that are sockets, or folders with one."""


def this_host(runs: Path, sources: list[Path]) -> Host:
    """This machine and user; `sources` are the paths that will be asked about."""
    homes = {Path.home(), Path(pwd.getpwuid(os.geteuid()).pw_dir)} if _known() else {Path.home()}
    return Host(
        homes=tuple(sorted(Path(os.path.realpath(home)) for home in homes)),
        state=Path(os.path.realpath(state_folder())),
        cache=Path(os.path.realpath(cache_folder())),
        runs=Path(os.path.realpath(runs)),
        sockets=frozenset(path for path in sources if _is_socket(path) or _has_socket(path)),
    )


def exposed(source: Path, *, writable: bool, host: Host) -> str | None:
    """Why a container that gets `source`, a real path, is not closed; None where it is."""
    if source in host.sockets:
        return "is a socket, or holds one: who answers it acts for whoever asks"
    if source == Path("/"):
        return "is the whole host"
    if source == Path("/tmp"):  # noqa: S108
        return "is everybody's temporary folder, with the sockets of agents and terminals"
    secret = [host.state, *(home / name for home in host.homes for name in _CREDENTIALS)]
    for place in host.homes:
        if source == place or source in place.parents:
            return f"holds your home folder {place}"
    for place in secret:
        if _touches(source, place):
            what = "runner's own state" if place == host.state else "credentials"
            return f"holds or is {what} ({place})"
    if Path("/dev/shm") in source.parents and source.parts[3].startswith("runner-"):  # noqa: S108
        return "holds secrets of runs"
    harmless = _lies_in(source, _AMONG_THEM) or (_within(source, _READABLE) and not writable)
    if _within(source, _KERNEL) and not harmless:
        return "is the system's own"
    return _writable(source, host) if writable else None


def _writable(source: Path, host: Host) -> str | None:
    if _within(source, (*_SYSTEM, *_SYSTEM_DATA)) or str(source) in _SHARED:
        return "is the system's own, and can be written"
    for home in host.homes:
        if home in source.parents:
            first = source.relative_to(home).parts[0]
            if first.startswith(".") and first != ".cache":
                return f"is of your settings ({home / first}), and can be written"
    if _touches(source, host.cache) and not _within(source, (str(host.cache / PREPARED),)):
        return "holds runner's cache, whose hashes `reproduce` relies on, and can be written"
    if source == host.runs or host.runs in source.parents:
        return "holds records of runs, and can be written"
    return None


def _within(source: Path, places: tuple[str, ...]) -> bool:
    return any(source == Path(place) or Path(place) in source.parents for place in places)


def _lies_in(source: Path, places: tuple[str, ...]) -> bool:
    return any(Path(place) in source.parents for place in places)


def _touches(source: Path, place: Path) -> bool:
    """Whether one is the other, or lies in it."""
    return source == place or source in place.parents or place in source.parents


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _has_socket(path: Path) -> bool:
    """Of the folder's own entries; nobody's data has so many that more are to be looked at."""
    try:
        with os.scandir(path) as entries:
            return any(_is_socket(Path(each)) for each in itertools.islice(entries, 1000))
    except OSError:
        return False


def _known() -> bool:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True
