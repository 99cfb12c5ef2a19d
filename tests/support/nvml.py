"""Fixtures for the guard's tests: an NVML stub, of a current and of an old driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testbed import FakeNvml, build_nvml


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml(tmp_path_factory.mktemp("old-nvml"), "OLD_DRIVER")


@pytest.fixture
def fake_nvml(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    return FakeNvml(nvml_library, tmp_path / "nvml.state")


@pytest.fixture
def old_nvml(old_nvml_library: Path, tmp_path: Path) -> FakeNvml:
    return FakeNvml(old_nvml_library, tmp_path / "nvml.state")
