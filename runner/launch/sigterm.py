"""Let SIGTERM end a command as an error does. Standard library only."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def tidy_at_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the command as an error does: what was begun is removed."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
