"""The lines of metrics.jsonl that say a step's loss. Standard library and runner.durable only.

The engine writes them, and so may a script of the user's own, which writes what it likes: what is
no such line is passed over by every reader alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner import durable


def is_loss_line(record: Mapping[str, Any]) -> bool:
    """Whether a record has a step, and a loss that is a number or None (not finite)."""
    loss = record.get("loss")
    return (
        "loss" in record
        and isinstance(record.get("step"), int)
        and (loss is None or isinstance(loss, int | float))
    )


def loss_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl that say a step's loss; none where there is no file."""
    return (record for record in durable.read_jsonl(path) if is_loss_line(record))


def time_of(record: Mapping[str, Any]) -> float | None:
    """When a record was written, in unix seconds; None where it doesn't say."""
    when = record.get("time_unix_seconds")
    return float(when) if isinstance(when, int | float) else None
