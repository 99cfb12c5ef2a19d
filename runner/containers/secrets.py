"""Give secrets to a container as files in memory; their values go nowhere else.

Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def have_secrets(names: Iterable[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Whether one of them is set."""
    return any(environment.get(name) for name in names)


def write_secrets(
    folder: Path, names: Iterable[str], environment: Mapping[str, str] = os.environ
) -> None:
    """A new folder with a file for each secret that is set, readable by this user alone.

    Raises OSError.
    """
    folder.mkdir(mode=0o700)
    for name in names:
        if value := environment.get(name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(folder / name, flags, 0o400), "w") as file:
                file.write(value)
