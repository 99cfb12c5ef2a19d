"""PyTorch's record of allocations, kept where a GPU run is out of memory.

Imports torch when called. The file is a pickle, since torch's viewer (pytorch.org/memory_viz) reads
that; runner writes it and never reads one.
"""

from __future__ import annotations

import os
from pathlib import Path

from runner.common import durable, terminal
from runner.plans.base import Plan
from runner.runs.folder import RunFolder

ENTRIES = 100_000
"""Newest allocations and frees that are kept, with their stacks; some tens of MB."""


def start_record(plan: Plan) -> None:
    """Let torch keep its record, where the job asks for it (budget.oom_snapshot)."""
    if not plan.budget.oom_snapshot or plan.launch.device != "cuda":
        return
    import torch

    torch.cuda.memory._record_memory_history(max_entries=ENTRIES)


def keep_snapshot(plan: Plan, folder: RunFolder) -> Path | None:
    """Write the record whole into the run's folder; where, or None where there is none.

    Never raises: the failure that it is about is told all the same.
    """
    if not plan.budget.oom_snapshot or plan.launch.device != "cuda":
        return None
    import torch

    staged = folder.oom_snapshot.with_suffix(f".{os.getpid()}.part")
    try:
        torch.cuda.memory._dump_snapshot(str(staged))
        with staged.open("rb") as stream:
            os.fsync(stream.fileno())
        staged.replace(folder.oom_snapshot)
        durable.fsync_folder(folder.path)
    except Exception as error:  # a context that the error left unusable, a full disk
        staged.unlink(missing_ok=True)
        terminal.say(f"runner: no oom snapshot: {error}")
        return None
    return folder.oom_snapshot
