"""The states of the random number generators that a training draws from. Imports torch, numpy."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """What is drawn inside changes nothing that is drawn afterwards, on this process's devices."""
    own, numbers, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numbers)
        torch.set_rng_state(host)
        if cards:
            torch.cuda.set_rng_state_all(cards)
