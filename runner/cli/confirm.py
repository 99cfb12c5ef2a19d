"""A question before something is deleted: asked at a terminal, and never taken for answered."""

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
        raise UsageError("nobody can be asked here, so nothing was removed", "--yes removes it")
    terminal.say(f"{question} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
