"""Runs that several tests look at, made once for all workers of a test session.

May import the standard library, filelock, pytest and runner.runs.origin.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from runner.runs import origin


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A copy, this worker's own, of the folder that `make` fills; it is called by one worker.

    Runs in the copy's runs/ are sealed with this worker's key, so that they are its user's own.
    """
    base = factory.getbasetemp()
    root = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    place, done = root / f"once-{name}", root / f"once-{name}.done"
    with FileLock(f"{place}.lock"):
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            done.touch()
    own = factory.mktemp(name) / "place"
    shutil.copytree(place, own, symlinks=True)
    for plan in own.glob("runs/*/*/plan.yaml"):
        origin.seal(plan.parent, plan.read_bytes())
    return own
