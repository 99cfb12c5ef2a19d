"""Give a run a TMPDIR of its own on this machine, so that it leaves nothing in the shared one.

Libraries leave folders there when their process is killed, and some always (wandb at every import).
The name is derived from the run's folder: the next start, or the removal of the run, deletes what a
killed supervisor left. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path


def temporary_of(run: Path) -> Path:
    """Where the temporary files of the run in `run` go; raises OSError where there is no place."""
    digest = hashlib.sha256(str(run.absolute()).encode()).hexdigest()
    return Path(tempfile.gettempdir()) / f"runner-{os.geteuid()}-{digest[:16]}"


def make(run: Path) -> Path:
    """An empty folder of that name, readable by this user alone.

    Raises OSError where it can't be made, or something of another user's has the name.
    """
    place = temporary_of(run)
    clear(run)
    place.mkdir(mode=0o700)
    return place


def clear(run: Path) -> None:
    """Remove it with all that is in it, where it is this user's; raises OSError otherwise."""
    place = temporary_of(run)
    try:
        found = place.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{place} is there and is not this user's folder")
    shutil.rmtree(place)
