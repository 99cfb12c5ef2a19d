"""Start Python on runner's own code; no other module does.

Standard library and runner.common.launchers only. `python -m` and `python -c` put the current
folder before all packages: a psutil.py there would run in the supervisor. `-P` (Python 3.11) leaves
it out, and PYTHONSAFEPATH does so for what the libraries start in turn.

Between our processes all text is UTF-8, whatever locale and PYTHONIOENCODING the caller has; what a
child writes to the user's own terminal is in the terminal's encoding (TERMINAL_ENCODING).
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Mapping

from runner.common.launchers import without_launchers

SAFE_PATH = "PYTHONSAFEPATH"
TERMINAL_ENCODING = "RUNNER_TERMINAL_ENCODING"
"""Of a child that writes to the user's own stderr, or to both: the encoding, where not UTF-8."""
_UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}


def module_argv(module: str, *arguments: str, python: str | None = None) -> list[str]:
    """The command line of `python -m MODULE ARGUMENTS`; `python` in place of this interpreter."""
    return [python or sys.executable, "-P", "-m", module, *arguments]


def code_argv(code: str, *arguments: str) -> list[str]:
    """The command line of `python -c CODE ARGUMENTS`, of this interpreter."""
    return [sys.executable, "-P", "-c", code, *arguments]


def utf8_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (this process's by default) of a child whose output we read: in UTF-8."""
    kept = dict(os.environ if environment is None else environment)
    kept.pop(TERMINAL_ENCODING, None)
    return {**kept, **_UTF8}


def safe_environment(
    environment: Mapping[str, str] | None = None, *, to_terminal: bool = False
) -> dict[str, str]:
    """The environment (this process's by default) in which no child takes modules from where it is,
    nor takes itself for one of several that another launcher started.

    Not for what runs a user's script: that finds the modules beside itself.

    Args:
        environment: to begin with.
        to_terminal: whether the child's stderr is this process's own.
    """
    safe = {**without_launchers(utf8_environment(environment)), SAFE_PATH: "1"}
    encoding = getattr(sys.stderr, "encoding", None) if to_terminal else None
    if encoding and not _is_utf8(encoding):
        safe[TERMINAL_ENCODING] = encoding
    return safe


def speak_utf8() -> None:
    """Begin this process anew in Python's UTF-8 mode, where the locale has another encoding.

    File names, texts of files and what children say are then UTF-8; stdin, stdout and stderr keep
    the encoding that they have. Returns where nothing has to be done.
    """
    if _is_utf8(sys.getfilesystemencoding()) or sys.flags.utf8_mode:
        return
    begun = {**os.environ, "PYTHONUTF8": "1"}
    begun.setdefault("PYTHONIOENCODING", getattr(sys.stdout, "encoding", None) or "ascii")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], begun)  # noqa: S606 - this very program, anew


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False
