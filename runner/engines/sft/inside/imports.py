"""Import the training stack without looking for garbage meanwhile. Standard library only."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Around the stack's imports: they make some 700,000 objects, of which hardly one is garbage.

    Python's collector goes through them again and again as they grow, which is a fifth of the time
    that the imports take. What is there at the end is not looked at again (gc.freeze): modules stay
    as long as the process. Does nothing where the stack is imported already.
    """
    if "transformers" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
