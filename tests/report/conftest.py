"""The NVML stub, for views of it."""

from tests.guard.conftest import fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]
