"""Use containers by the command line of Docker or Podman: images, locks, secrets, orphans.

Imports the standard library and runner.common; no Docker SDK, so that recorded commands can be
typed by a user. Knows no plan.
"""
