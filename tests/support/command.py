"""The `runner` command, called in this process; where the repository and the shared material lie.

May import the standard library; runner when called.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("RUNNER_SHARED", REPOSITORY.parent / "shared"))
"""Real data, models and tokenizers; not everywhere."""


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run_cli(*arguments: str) -> Answer:
    """The `runner` command's own entry point, in this process."""
    from runner.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["runner", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return Answer(code, out.getvalue(), err.getvalue())
