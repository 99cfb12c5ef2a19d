"""What the stub says of a plan before it starts, and of what would have fitted. No torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from runner.engines.render import read_plan
from runner.engines.sft.inside.train.schedule import count_saves, kept_at_once
from runner.engines.sft.plan import SftPlan

CHECKPOINT_BYTES = 1 << 16


def survey(plan_path: Path) -> None:
    """Print the document of runner.engines.sft.inside.survey, without the rows' report and a
    prediction.
    """
    plan = read_plan(plan_path)
    trainings = [_training(part) for part in plan.trainings]
    disk = sum(part["kept"] * part["checkpoint_bytes"] for part in trainings) + CHECKPOINT_BYTES
    record = {"notes": [], "warnings": [], "trainings": trainings, "memory": None}
    print(json.dumps({**record, "disk_bytes": disk}))


def steps_of(part: SftPlan) -> int:
    """Optimizer steps of one training: as its plan says, else by its rows."""
    training = part.training
    if training.max_steps is not None:
        return training.max_steps
    return math.ceil(training.num_train_epochs * math.ceil(_rows(part) / _global_batch(part)))


def _global_batch(part: SftPlan) -> int:
    training = part.training
    at_once = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return at_once * part.launch.num_processes


def _rows(part: SftPlan) -> int:
    path = part.rows.train.path
    return 1 if path is None else max(1, len(Path(path).read_text().splitlines()))


def _training(part: SftPlan) -> dict[str, Any]:
    rows, batch, steps = _rows(part), _global_batch(part), steps_of(part)
    an_epoch = math.ceil(rows / batch)
    return {
        "phase": part.phase,
        "rows": rows,
        "eval_rows": 0,
        "global_batch": batch,
        "steps_an_epoch": an_epoch,
        "steps": steps,
        "passes": steps / an_epoch,
        "saves": count_saves(part.training, steps),
        "kept": kept_at_once(part.training, steps),
        "data": {},
        "lines": [f"data       {rows} rows, which the stub only counts"],
        "parameters": {"trainable": 8, "total": 800, "percent": 1.0},
        "checkpoint_bytes": CHECKPOINT_BYTES,
    }


def cheapest(request_path: Path) -> None:
    """Print one change that would have fitted: half the rows at once, at half of the limit.

    Asked for anything else, such as a prediction, it refuses.
    """
    request = json.loads(request_path.read_text())
    if request.get("cheapest") is None:
        print(json.dumps({"error": ["the stub predicts nothing"]}))
        return
    training = read_plan(Path(request["plan"])).training
    rows = training.per_device_train_batch_size // 2
    accumulated = training.gradient_accumulation_steps * 2
    change = {
        "text": f"{rows} rows x {accumulated} accumulated",
        "overrides": {
            "training.per_device_train_batch_size": rows,
            "training.gradient_accumulation_steps": accumulated,
        },
        "peak_bytes": request["cheapest"]["limit_bytes"] // 2,
        "time": 1.1,
        "changes": "",
    }
    print(json.dumps({"changes": [change]}))
