"""Make private folders in memory that nobody else can read: for secrets and a container's id.

Standard library and runner.common.processes only. A name is made anew each time and says whose it
is (`runner-UID-NAMESPACE-PID-TICKS-RANDOM`), so that what a kill left is known as ours and
nobody's.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner.common.process_times import pid_namespace, start_ticks

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - in memory; a folder of the user's own in it
_NAME = re.compile(r"runner-(\d{1,10})-(\d{1,12})-(\d{1,10})-(\d{1,19})-\w{8}")


def private_place(environment: Mapping[str, str] = os.environ) -> Path:
    """Where private folders lie: $XDG_RUNTIME_DIR where it is this user's alone, else /dev/shm."""
    given = Path(environment.get("XDG_RUNTIME_DIR") or "")
    return given if given.is_absolute() and _is_ours(given, alone=True) else SHARED_MEMORY


def make_private(environment: Mapping[str, str] = os.environ) -> Path:
    """A new folder, readable by this user alone; what killed processes left is swept first.

    Raises OSError.
    """
    sweep_private(environment)
    return Path(tempfile.mkdtemp(prefix=_prefix(), dir=private_place(environment)))


def private_example(environment: Mapping[str, str] = os.environ) -> Path:
    """A name as `make_private` would give, of a folder that is not made: for a dry run."""
    return private_place(environment) / f"{_prefix()}XXXXXXXX"


def sweep_private(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Remove this user's private folders whose process is gone; those removed.

    Links, other users' folders and those of other pid namespaces are left alone.
    """
    return [folder for folder in dead_private(environment) if _remove(folder)]


def dead_private(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """What `sweep_private` would remove."""
    places = {SHARED_MEMORY, private_place(environment)}
    return sorted(folder for place in places for folder in _dead(place))


def _dead(place: Path) -> Iterator[Path]:
    try:
        names = [entry.name for entry in os.scandir(place)]
    except OSError:
        return
    for name in names:
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        uid, namespace, pid, ticks = map(int, found.groups())
        ours = uid == os.geteuid() and namespace == _namespace()
        if ours and start_ticks(pid) != ticks and _is_ours(place / name):
            yield place / name


def _remove(folder: Path) -> bool:
    """rmtree goes by descriptors and follows no link, whatever is put there meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _is_ours(folder: Path, *, alone: bool = False) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    closed = not alone or stat.S_IMODE(found.st_mode) == 0o700
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and closed


def _prefix() -> str:
    pid = os.getpid()
    return f"runner-{os.geteuid()}-{_namespace()}-{pid}-{start_ticks(pid) or 0}-"


def _namespace() -> int:
    """The number of this process's pid namespace, without which a pid says nothing."""
    digits = re.sub(r"\D", "", pid_namespace() or "")
    return int(digits or 0)
