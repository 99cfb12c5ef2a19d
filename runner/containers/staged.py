"""Let a container write a result into a folder of its own, when its place is beside other files.

Imports the standard library and runner.common.staged_folder, errors. A result is renamed into
place, for which the container would have to write the folder that it goes to, such as a home
folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runner.common.errors import RunnerError
from runner.common.staged_folder import Taken, place_new


@contextlib.contextmanager
def staged_beside(target: Path, *, apart: bool) -> Iterator[Path]:
    """The place to write the folder `target` at: alone in a folder that is opened to the container.

    Once the block has ended well, what stands there takes its place at `target`; nothing happens
    where nothing was made. Without `apart` the place is `target` itself.

    Raises OSError; RunnerError where something else is there, or at `target` by now.
    """
    if not apart:
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".staging", dir=target.parent))
    place = holder / target.name
    try:
        yield place
        if os.path.lexists(place):
            if place.is_symlink() or not place.is_dir():
                raise RunnerError(f"what was written for {target} is no folder")
            try:
                place_new(place, target)
            except Taken:
                meanwhile = f"{target} came to be there meanwhile; nothing is overwritten"
                raise RunnerError(meanwhile) from None
    finally:
        shutil.rmtree(holder, ignore_errors=True)
