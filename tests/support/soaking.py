"""What a soak test (RUNNER_SOAK=1, `./just soak`) repeats more often than the suite does.

A test marked `soak` waits for one (tests/conftest.py skips it); of each a smaller count, a smaller
model or recorded figures stay in the suite.
"""

from __future__ import annotations

import os

IS_SOAK = os.environ.get("RUNNER_SOAK") == "1"


def examples(ci: int, soak: int) -> int:
    """How many examples a property is tried on: `soak` in a soak test, else `ci`."""
    return soak if IS_SOAK else ci
