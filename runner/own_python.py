"""How runner starts Python on code of its own: the one place that does.

Standard library only. The folder that a user stands in is put before all packages by `python -m`
and `python -c`: a psutil.py there would run in the supervisor. `-P` (Python 3.11) leaves it out,
and PYTHONSAFEPATH does so for what the libraries start in turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

SAFE_PATH = "PYTHONSAFEPATH"


def module_argv(module: str, *arguments: str, python: str | None = None) -> list[str]:
    """The command line of `python -m MODULE ARGUMENTS`; `python` in place of this interpreter."""
    return [python or sys.executable, "-P", "-m", module, *arguments]


def code_argv(code: str, *arguments: str) -> list[str]:
    """The command line of `python -c CODE ARGUMENTS`, of this interpreter."""
    return [sys.executable, "-P", "-c", code, *arguments]


def safe_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (this process's by default) in which no child takes modules from where it is.

    Not for what runs a user's script: that finds the modules beside itself.
    """
    return {**(os.environ if environment is None else environment), SAFE_PATH: "1"}
