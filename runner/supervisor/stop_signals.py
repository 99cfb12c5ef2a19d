"""Record the stops that the supervisor was asked for by signals. Standard library only."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Literal, Protocol


class Stop(Protocol):
    """Whether the run was asked to end (1 in order, 2 now), and by Ctrl-C or not."""

    @property
    def level(self) -> Literal[0, 1, 2]: ...
    @property
    def interrupted(self) -> bool: ...


class StopRequests:
    """Signals to the supervisor: the first asks the run to end in order, the second to end now."""

    def __init__(self) -> None:
        self.level: Literal[0, 1, 2] = 0
        self.interrupted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.level = 1 if self.level == 0 else 2
