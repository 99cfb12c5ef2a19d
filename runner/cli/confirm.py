"""Ask at a terminal before something is deleted; without a terminal, refuse."""

from __future__ import annotations

import sys

from runner.common import terminal
from runner.common.errors import UsageError


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether it may be done: `--yes`, or a "y" at the terminal.

    Raises UsageError where nobody can be asked.
    """
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "there is no terminal to ask on, so nothing was removed", "--yes removes it"
        )
    terminal.say(f"{question} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
