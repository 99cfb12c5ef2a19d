"""Limit what torch may build from the files that it loads: tensors, numbers, DeepSpeed's four
classes.

A pickle can name any function of any package and have it called. torch's `weights_only` calls none,
but libraries turn it off: DeepSpeed for each file of a checkpoint. An environment variable that
torch reads at every load turns it on for the whole process. Imports torch and deepspeed when
called.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from runner.common.errors import RefusedError

_NAMED = (r"GLOBAL ([\w.]+)", r"Unsupported class ([\w.]+)", r"got <class '([\w.]+)'>")


@contextlib.contextmanager
def deepspeed_states(checkpoint: Path | None, *, deepspeed: bool) -> Iterator[None]:
    """Let torch.load build the classes that DeepSpeed puts into its own checkpoints.

    They hold numbers, and building one calls nothing else. Nothing is changed where no checkpoint
    is resumed from, or where it is not DeepSpeed's.
    """
    if checkpoint is None or not deepspeed:
        yield
        return
    import torch

    with torch.serialization.safe_globals(_deepspeed_classes()):
        yield


def _deepspeed_classes() -> list[Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def unloadable(error: Exception, checkpoint: Path) -> RefusedError | None:
    """The refusal for a file of `checkpoint` that torch.load would not build, or could not read.

    None where `error` has another cause: it did not come out of torch.load, or memory or disk
    failed there.
    """
    import torch

    if isinstance(error, (MemoryError, OSError, torch.OutOfMemoryError)):
        return None
    loaded = _loaded_file(error.__traceback__)
    if loaded is None:
        return None
    name = os.path.relpath(loaded, checkpoint)
    asked = next((found[1] for text in _NAMED if (found := re.search(text, str(error)))), None)
    why = f"asks for {asked}" if asked else _reason(error)
    return RefusedError(
        f"{checkpoint.name} holds something else than tensors and numbers, and was not loaded: "
        f"{name} {why}",
        "it was not written by this run; delete it to resume from an earlier one",
    )


def _loaded_file(trace: TracebackType | None) -> str | None:
    """The file that torch.load was reading when an error came out of it."""
    import torch

    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code is torch.serialization.load.__code__:
            given = frame.f_locals.get("f")
            return str(getattr(given, "name", given))
    return None


def _reason(error: Exception) -> str:
    """An error's own words, without torch's advice on how to run the pickle all the same."""
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"can't be read: {lines[0][:200] if lines else type(error).__name__}"
