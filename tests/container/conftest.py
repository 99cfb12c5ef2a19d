"""Fixtures of real trainings; those of containers are in tests/conftest.py."""

from __future__ import annotations

from tests.runs.conftest import identity_rows, small_job, stories

__all__ = ["identity_rows", "small_job", "stories"]
