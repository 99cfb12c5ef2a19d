"""A second user of the machine, for real: a process under another uid."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

UID = 54_321
NAME = f"uid {UID}"
_context = multiprocessing.get_context("fork")


@dataclass
class Other:
    """A process of the other user that has done its part and stays until the block ends."""

    pid: int
    result: Any


@contextlib.contextmanager
def other_user(act: Callable[[], Any], uid: int = UID) -> Iterator[Other]:
    """A process under `uid` that calls `act`, tells its result and then waits, holding all it has.

    Skips the test where this user can't become another.
    """
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")
    here, there = _context.Pipe()
    process = _context.Process(target=_live, args=(act, uid, there), daemon=True)
    process.start()
    try:
        assert here.poll(600)
        result = here.recv()
        if isinstance(result, BaseException):
            raise result
        assert process.pid is not None
        yield Other(process.pid, result)
    finally:
        process.kill()
        process.join()


def _live(act: Callable[[], Any], uid: int, there: Any) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    try:
        there.send(act())
    except BaseException as error:
        there.send(error)
        return
    there.recv()


@contextlib.contextmanager
def common_folder() -> Iterator[Path]:
    """A folder that every user can look into; pytest's own are one user's."""
    with tempfile.TemporaryDirectory(prefix="runner-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)
