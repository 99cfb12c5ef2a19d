"""Change the host's records in place, in a folder that a container writes; follow no link.

Standard library only. The inode stays, so that what is mounted over it in a container stays too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file that is there or is made; the last name is no link's.

    Raises OSError: it is a link (ELOOP), or no file that this user may open.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PermissionError(f"{path} is no regular file")
    return descriptor


def write_in_place(path: Path, content: bytes) -> None:
    """Replace a file's content, keeping its inode; not whole after a power cut. Raises OSError."""
    descriptor = open_own(path, os.O_WRONLY | os.O_CREAT)
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, content[done:], done)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
