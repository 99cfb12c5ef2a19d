"""Watch a run from outside until it has ended, whoever started it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from runner.common.errors import RefusedError, RunnerError
from runner.runs.folder import RunFolder
from runner.runs.state import GONE, NOT_STARTED, is_over, state_of

POLL_SECONDS = 0.2
START_SECONDS = 15.0  # that a supervisor may take until it says its pid


def states(folder: RunFolder) -> Iterator[str]:
    """Its state, five times a second, up to and with the one that it ends in.

    What it wrote is whole once the last state came: that is looked at first.

    Raises:
        RefusedError: nobody has started it, nor does so within START_SECONDS.
        RunnerError: its folder was removed.
    """
    began = time.monotonic()
    while True:
        state = state_of(folder)
        if state == GONE:
            raise RunnerError(f"{folder.name}: its folder is gone; somebody removed it meanwhile")
        if state == NOT_STARTED:
            if time.monotonic() - began > START_SECONDS:
                raise RefusedError(
                    f"{folder.name} was never started", f"runner rm {folder.name} removes it"
                )
        else:
            yield state
            if is_over(folder, state):
                return
        time.sleep(POLL_SECONDS)
