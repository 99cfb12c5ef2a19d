"""Find the folder of state that outlives runs and is not a cache. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """The user's state folder of runner: $RUNNER_STATE, else ~/.local/state/runner."""
    given = os.environ.get("RUNNER_STATE")
    if given:
        return Path(given).absolute()
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base).absolute() / "runner"
