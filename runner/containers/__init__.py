"""Containers by the command line of Docker or Podman: images, the run's own command, what is left.

Imports the standard library and runner's errors; no Docker SDK, so that what is recorded is what a
user could type.
"""
