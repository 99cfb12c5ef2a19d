"""Remove links that a container left in its run folder and that lead out of it.

Imports the standard library and runner.runs.folder. Called while no container of the run lives. The
host must not be led elsewhere by what it opens there later; no link out of a run is of use in its
container.
"""

from __future__ import annotations

import os
from pathlib import Path

from runner.runs.folder import RunFolder


def remove_planted(folder: RunFolder) -> list[str]:
    """Remove them; each in words. Links at the top go wherever they lead.

    What the user's own script and the trackers keep in their folders is left as it is: the host
    opens nothing there by itself. Raises OSError.
    """
    theirs = {folder.output, folder.wandb, folder.mlruns, folder.tensorboard}
    removed = []
    for place, folders, files in os.walk(folder.path, followlinks=False):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and (path.parent == folder.path or _leads_out(path, folder)):
                target = path.readlink()
                path.unlink()
                removed.append(f"{path.relative_to(folder.path)}, a link to {target}")
        folders[:] = [name for name in folders if Path(place, name) not in theirs]
    return removed


def _leads_out(path: Path, folder: RunFolder) -> bool:
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder.path))
