"""Benches: one of each test's own, and one with a completed run that tests only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.benches import Bench, make_bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    folder = tmp_path / 'a place\'s "own"'
    folder.mkdir()
    return make_bench(folder)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    """A bench and a completed run of it, for tests that leave the run as it is."""
    bench = make_bench(tmp_path_factory.mktemp("first"))
    return bench, bench.train()
