"""What is repeated only in a soak test (RUNNER_SOAK=1, `./just soak`).

Of every such test a smaller count, a smaller model or recorded figures stay in the suite.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

IS_SOAK = os.environ.get("RUNNER_SOAK") == "1"
ONLY_IN_SOAK = (
    pytest.mark.soak,
    pytest.mark.skipif(not IS_SOAK, reason="a long repetition: RUNNER_SOAK=1 (./just soak)"),
)
"""Marks of a test, or of a case of it (pytest.param), that waits for a soak test."""


def only_in_soak(test: Any) -> Any:
    """The decorator of ONLY_IN_SOAK."""
    for mark in ONLY_IN_SOAK:
        test = mark(test)
    return test
