"""Name once the caller's variables that do not reach a process of the engine.

Imports runner.common.launchers and what prints.
"""

from __future__ import annotations

import os

from runner.common import terminal
from runner.common.launchers import OF_BATCH_SYSTEMS, of_launchers


def say_left_out() -> None:
    """Name the variables of other launchers; those of a batch system alone change nothing."""
    names = [name for name in of_launchers(os.environ) if not name.startswith(OF_BATCH_SYSTEMS)]
    if names:
        terminal.say(
            f"runner: set outside by another launcher, and left out here: {' '.join(names)}"
        )
