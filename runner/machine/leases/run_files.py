"""What a claim's run folder says of its processes, believed only where the kernel says the same.

Another user names that folder, and may have made it so that looking into it takes for ever (an
automount, FUSE): there it is given some seconds, once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from runner.common.process_times import boot_id
from runner.machine.leases.kernel import LARGEST_PID, Inner, is_process
from runner.machine.leases.lease_file import decode_record
from runner.machine.leases.models import Lease
from runner.machine.leases.small_file import read_small
from runner.runs.folder import RunFolder

_MOST_RANKS = 64
_MOST_NAMES = 1024
_LARGEST_RANK_BYTES = 4096
_FOLDER_SECONDS, _SLOW_SECONDS = 2.0, 0.25
_AGAIN_SECONDS = 60.0
_T = TypeVar("_T")
_slow: dict[int, float] = {}
"""Users whose folders were slow to answer, and until when (monotonic) they are not asked."""


def find_orphans(claim: Lease, inner: Inner) -> tuple[int, ...]:
    """pids of the claimant's processes that train in its folder still, loading weights maybe.

    A pid in the folder's records counts only where such a process of the claim's user lives that
    started when the record says, under this boot.
    """
    return _ask(claim, lambda: tuple(_living(claim, inner)), ())


def container_of(claim: Lease) -> str | None:
    """The id of the container that the run says it has; whose its processes are is to be asked."""
    found = _ask(claim, lambda: read_small(RunFolder(Path(claim.folder)).container_id), None)
    text = "" if found is None else found.content.decode("ascii", "replace").strip()
    return text if len(text) == 64 else None


def _living(claim: Lease, inner: Inner) -> Iterator[int]:
    boot = boot_id()
    for record in _ranks(claim):
        pid, ticks = record.get("pid"), record.get("start_ticks")
        if type(pid) is not int or type(ticks) is not int or not 0 < pid <= LARGEST_PID:
            continue
        if boot is None or record.get("boot_id") != boot:
            continue
        if is_process(pid, ticks, claim.uid):
            yield pid
        elif (found := inner.host_pid(pid, ticks, claim.uid)) is not None:
            yield found


def _ranks(claim: Lease) -> Iterator[dict[str, object]]:
    """The records engine/rank-N.json, of a folder that is the claimant's own."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError, ValueError):
        flags = os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
        engine = RunFolder(Path(claim.folder)).engine
        run = os.open(claim.folder, os.O_PATH | flags)
        stack.callback(os.close, run)
        folder = os.open(engine.name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=run)
        stack.callback(os.close, folder)
        if {os.fstat(run).st_uid, os.fstat(folder).st_uid} != {claim.uid}:
            return
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MOST_NAMES)]
        ranks = sorted(n for n in names if n.startswith("rank-") and n.endswith(".json"))
        for name in ranks[:_MOST_RANKS]:
            found = read_small(name, _LARGEST_RANK_BYTES, folder=folder)
            if found is not None and found.uid == claim.uid:
                record = decode_record(found.content, _LARGEST_RANK_BYTES)
                if record is not None:
                    yield record


def _ask(claim: Lease, question: Callable[[], _T], nothing: _T) -> _T:
    """The answer, or `nothing` where another user's folder gives none in time."""
    if claim.uid == os.geteuid():
        return question()
    began = time.monotonic()
    if began < _slow.get(claim.uid, 0.0):
        return nothing  # he may name hundreds such folders, and each look takes a thread for each
    answers: list[_T] = []
    asking = threading.Thread(target=lambda: answers.append(question()), daemon=True)
    asking.start()
    asking.join(_FOLDER_SECONDS)
    if time.monotonic() - began > _SLOW_SECONDS:
        _slow[claim.uid] = time.monotonic() + _AGAIN_SECONDS
    return answers[0] if answers else nothing
