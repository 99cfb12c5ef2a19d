"""Which tests one worker takes in one piece: a file's, so that a module's fixtures are made once.

`--dist loadgroup` of pytest-xdist reads its groups from node ids, to which it writes `@group` first
by way of an attribute that pytest 9.1 no longer has: every test then goes to any worker, and what a
module makes once is made by each of them.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


def group_of(nodeid: str) -> str:
    """The file that a test stands in, as its node id says it."""
    return nodeid.partition("::")[0]


class ByFile(LoadScopeScheduling):
    """Whole files to workers, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def by_file(config: pytest.Config, log: Any) -> ByFile | None:
    """What spreads the tests of a `--dist loadgroup`; None for xdist's own of another kind."""
    return ByFile(config, log) if config.getoption("dist") == "loadgroup" else None
