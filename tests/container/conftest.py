"""The daemon, the train image and the GPU node of tests/testbed/docker.py, for the tests here."""

from __future__ import annotations

from tests.testbed.docker import docker_daemon, gpu_daemon, train_image

__all__ = ["docker_daemon", "gpu_daemon", "train_image"]
