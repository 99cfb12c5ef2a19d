"""Secrets as files in memory, for a container to read; their values go nowhere else.

Standard library only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

PLACE = Path("/dev/shm")  # noqa: S108 - in memory; a folder of the user's own in it


def secrets_folder(
    container: str, names: Iterable[str], environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Where the secrets of a container lie while it runs; None where none of them is set."""
    if not any(environment.get(name) for name in names):
        return None
    return PLACE / f"runner-{os.geteuid()}-{container}"


def write_secrets(
    folder: Path, names: Iterable[str], environment: Mapping[str, str] = os.environ
) -> None:
    """A file for each secret that is set, readable by this user alone; what was there goes.

    Raises OSError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name in names:
        if value := environment.get(name):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o400)
            with os.fdopen(descriptor, "w") as file:
                file.write(value)
