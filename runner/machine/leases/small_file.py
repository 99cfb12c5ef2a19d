"""Reading a small file that anybody may have put there: no link, no waiting, no more than asked.

Standard library and runner.common.locks.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from runner.common.locks import try_flock

LARGEST_BYTES = 64 * 1024


@dataclass(frozen=True)
class SmallFile:
    """What was found, and what the kernel says of it."""

    content: bytes
    about: os.stat_result
    locked: bool
    """Somebody holds its lock (flock), whoever that is."""

    @property
    def uid(self) -> int:
        return self.about.st_uid


def read_small(
    path: Path | str, largest: int = LARGEST_BYTES, *, folder: int | None = None
) -> SmallFile | None:
    """A plain file of at most `largest` bytes; None where it is gone or is anything else.

    Args:
        folder: descriptor of the folder in which `path` is a name.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        descriptor = os.open(path, flags, dir_fd=folder)
    except (OSError, ValueError):
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > largest:
            return None
        locked = not try_flock(descriptor, shared=True)
        return SmallFile(os.read(descriptor, largest), about, locked)
    except OSError:
        return None
    finally:
        os.close(descriptor)
