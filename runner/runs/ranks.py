"""The training processes of a run, as their own records name them. Standard library only."""

from __future__ import annotations

from runner.common import durable
from runner.common.processes import host_pid, real_uid
from runner.runs.folder import RunFolder


def living_engines(folder: RunFolder) -> list[int]:
    """pids of the training processes of this run that live, as seen from here.

    Only processes of the folder's owner: its records can name anybody's.
    """
    try:
        owner = folder.path.stat().st_uid
    except OSError:
        return []
    records = (durable.read_json(path) for path in folder.engine_statuses())
    found = (host_pid(record) for record in records if isinstance(record, dict))
    return sorted(pid for pid in found if pid is not None and real_uid(pid) == owner)
