"""Read the lines of metrics.jsonl that have a step's loss.

Standard library, runner.common.durable and the records' types only. The engine writes them, and so
may a user's own script, in any form: every reader skips other lines in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

from runner.common import durable
from runner.runs.record_types import LossLine

_LARGEST = 2**63
_LATEST = 253_000_000_000  # unix seconds that a clock can show


def is_loss_line(record: Mapping[str, object]) -> TypeGuard[LossLine]:
    """Whether a record has a step, and a loss that is a number or None (not finite)."""
    step, loss = record.get("step"), record.get("loss")
    return (
        "loss" in record
        and type(step) is int
        and abs(step) < _LARGEST
        and (loss is None or type(loss) is float or (type(loss) is int and abs(loss) < _LARGEST))
    )


def loss_lines(path: Path) -> Iterator[LossLine]:
    """The records of a metrics.jsonl that say a step's loss; none where there is no file.

    A loss that is not a number (JSON has no NaN, but Python writes one) is None.
    """
    for record in durable.read_jsonl(path):
        if is_loss_line(record):
            loss = record["loss"]
            yield record if loss is None or math.isfinite(loss) else {**record, "loss": None}


def time_of(record: Mapping[str, object]) -> float | None:
    """When a record was written, in unix seconds; None where it doesn't say."""
    when = record.get("time_unix_seconds")
    if not isinstance(when, int | float) or not 0 <= when < _LATEST:
        return None
    return float(when)
