"""Ask a program, for a bounded time, and read what it printed.

Imports the standard library, psutil and runner.common's own_python.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from dataclasses import dataclass

import psutil

from runner.common.own_python import utf8_environment

VERSION_SECONDS = 3.0  # for `podman --version` and its like


@dataclass(frozen=True)
class Answer:
    """How a program answered. `code` is None where it did not start or had to be ended."""

    code: int | None
    out: str
    err: str
    timed_out: bool = False


def ask_program(argv: list[str], seconds: float) -> Answer:
    """Run a program for at most `seconds`; then it and its children are killed.

    In the caller's process group, so that Ctrl-C ends it too.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=utf8_environment(),
        )
    except OSError as error:
        return Answer(None, "", str(error))
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        process.kill()
        # one that the kernel can't end (a stuck driver) is left behind rather than waited for
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        return Answer(None, "", "", timed_out=True)
    return Answer(process.returncode, out, err)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def last_json(text: str) -> dict[str, object] | None:
    """The JSON object in the last line of `text`, or None."""
    try:
        found = json.loads(last_line(text))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def find_version(text: str) -> str | None:
    match = re.search(r"\d+(?:\.\d+)+", text)
    return match[0] if match else None
