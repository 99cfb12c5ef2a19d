"""The longest batch of each training of a plan: from its rows where they are here.

Imports the engine's data and rows. Where rows or tokenizer are not here, it is as long as the plan
lets a row be, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.common.errors import RunnerError
from runner.engines.sft.inside.image_tokens import image_tokens
from runner.engines.sft.inside.model.tokenizer import load_tokenizer
from runner.engines.sft.inside.rows import PreparedRows, prepare_rows
from runner.engines.sft.memory.ask import Batch
from runner.engines.sft.plan import SftPlan


def of_rows(plan: SftPlan, rows: PreparedRows) -> Batch:
    """The batch of the longest row, of a plan of one training."""
    longest = rows.train_audit.longest
    return Batch(
        tokens=longest,
        images=_images(rows.train) * plan.training.per_device_train_batch_size,
        because=f"the longest of {len(rows.train):,} rows",
    )


def _images(rows: Any) -> int:
    """The most images that a row has."""
    if "images" not in rows.column_names:
        return 0
    from pyarrow import compute

    lengths = compute.list_value_length(rows.data.column("images"))  # without reading a text
    return int(compute.max(lengths).as_py() or 0)


def longest_allowed(plan: SftPlan, why: str) -> Batch:
    """A batch of rows as long as they may be; of an image-text model with an image each."""
    rows = plan.training.per_device_train_batch_size
    return Batch(
        tokens=plan.training.max_length,
        images=rows if plan.vision is not None else 0,
        because=f"training.max_length, since {why}",
    )


def batches_of(plan: SftPlan) -> list[Batch]:
    """The longest batch of every training."""
    if plan.model.folder is None:
        why = "the model's tokenizer is not on this machine"
        return [longest_allowed(part, why) for part in plan.trainings]
    out = []
    for part in plan.trainings:
        if not all(source.path and Path(source.path).is_file() for source in part.rows.each):
            out.append(longest_allowed(part, "the rows are not on this machine"))
            continue
        try:
            tokenizer, _ = load_tokenizer(part)
            out.append(of_rows(part, prepare_rows(part, tokenizer, 0, image_tokens(part))))
        except RunnerError as error:
            out.append(longest_allowed(part, f"the rows can't be read ({error.message})"))
    return out
