"""Make torch build only tensors and numbers from the files that it loads, in this process and its
children, by an environment variable. Imports no torch.
"""

from __future__ import annotations

import os

from runner.common import terminal

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORBIDDEN = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""With both of them torch loads nothing at all."""


def load_tensors_only() -> None:
    """Have every torch.load of this process and its children build tensors and numbers alone.

    To be called first by each process that imports torch.
    """
    if os.environ.pop(FORBIDDEN, None):
        terminal.say(f"runner: {FORBIDDEN} is not followed here")
    os.environ[FORCED] = "1"
