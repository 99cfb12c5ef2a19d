"""How many examples a property is tried on: few in CI, many where RUNNER_SOAK=1 (`./just soak`)."""

from __future__ import annotations

import os


def examples(ci: int, soak: int) -> int:
    """`soak` in a soak test, else `ci`."""
    return soak if os.environ.get("RUNNER_SOAK") == "1" else ci
