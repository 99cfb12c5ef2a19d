"""Tests: they mirror the package; tests/testbed holds the fakes."""
