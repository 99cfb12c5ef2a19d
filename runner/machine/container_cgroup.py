"""Which processes are a container's, by the paths of their cgroups. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path

_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def runs_in(container_id: str, pid: int) -> bool:
    """Whether a host process belongs to a container, by its cgroup's path (no root)."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return in_container(text, container_id)


def in_container(cgroup_text: str, container_id: str) -> bool:
    """Whether the text of a /proc/PID/cgroup names the container, by its id or the id's start.

    Docker, containerd and podman all put the 64 hexadecimal digits into the path, in cgroup v1
    and v2, with and without systemd.
    """
    return any(
        found.startswith(container_id.lower()) for found in _CONTAINER_ID.findall(cgroup_text)
    )
