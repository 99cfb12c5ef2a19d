"""The variables by which a supervisor and its processes know each other, besides the records.

Imports nothing.
"""

from __future__ import annotations

SUPERVISOR_VARIABLE = "RUNNER_SUPERVISOR"
"""PID:START_TICKS of the supervisor; SUPERVISOR_BY_LOCK in a container, which has other pids."""
SUPERVISOR_BY_LOCK = "lock"
