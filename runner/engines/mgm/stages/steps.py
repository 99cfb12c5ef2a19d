"""How many optimizer steps a training has, and whether any of them has a learning rate above 0.

As transformers 4.38's trainer counts them. Standard library only; Python 3.10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

if __package__:
    from .finding import Finding
else:  # in a run folder the scripts lie beside each other
    from finding import Finding  # type: ignore[import-not-found, no-redef]

WARMUP_RATIO = 0.03  # the baseline's; a smoke of one step has none (command.py)


def training_steps(
    rows: int, batch: int, accumulation: int, processes: int, epochs: float, max_steps: int | None
) -> int:
    """Optimizer steps: 10,000 rows of 256 a step are 39. What is left of an epoch is no step."""
    if max_steps is not None:
        return max_steps
    batches = math.ceil(math.ceil(rows / batch) / processes)
    return math.ceil(epochs * max(1, batches // accumulation))


def planned_steps(plan: Mapping[str, Any], stage: str, rows: int) -> int:
    """Steps of one of a plan's trainings with so many rows."""
    training = plan[stage]
    if stage == "pretrain":
        rows = min(rows, plan["max_samples"])
    return training_steps(
        rows,
        training["per_device_train_batch_size"],
        training["gradient_accumulation_steps"],
        max(1, len(plan["gpus"])),
        plan["num_train_epochs"],
        plan["max_steps"],
    )


def warmup_ratio(max_steps: int | None) -> float:
    """The share of the steps that warm up: none of a smoke's only one, which would have rate 0."""
    return 0.0 if max_steps == 1 else WARMUP_RATIO


def warmup_findings(plan: Mapping[str, Any], rows: Mapping[str, int]) -> list[Finding]:
    """A training whose every step has learning rate 0: with a warm-up, the first step has that.

    Step k (from 0) of a warm-up of w steps has k / w of the peak (transformers'
    get_cosine_schedule_with_warmup), so it is the training of one step.
    """
    findings = []
    for stage in ("pretrain", "finetune"):
        steps = planned_steps(plan, stage, rows[stage])
        if steps > 1 or math.ceil(steps * warmup_ratio(plan["max_steps"])) == 0:
            continue
        batch = plan[stage]["global_batch_size"]
        findings.append(
            Finding(
                f"{stage}.data_path",
                f"{rows[stage]:,} rows make one step of {batch} samples, a warm-up's first, which "
                "has learning rate 0: nothing would be trained,",
                f"two steps at least ({2 * batch:,} rows, or num_train_epochs 2)",
            )
        )
    return findings
