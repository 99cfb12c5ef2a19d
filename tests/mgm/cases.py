"""What the tests of the MGM engine share: settings, plans, and run folders made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from runner.engine.mgm.plan import PlannedMgm, plan_mgm
from runner.engine.mgm.render import render_mgm
from runner.job_mgm import MgmSettings

STAGES = Path(__file__).parents[2] / "runner" / "engine" / "mgm" / "stages"


def settings(**changes: Any) -> MgmSettings:
    """Settings with made-up paths; `changes` by field, parts as mappings that are merged in."""
    record: dict[str, Any] = {
        "toolkit": "zoo/MGM",
        "model_name_or_path": "zoo/gemma-2b-it",
        "vision_tower": "zoo/OpenAI/clip-vit-large-patch14-336",
        "vision_tower_aux": "zoo/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
        "pretrain": {"data_path": "rows/pretrain.jsonl", "questions": "rows/stage_1.json"},
        "finetune": {"data_path": "rows/finetune.json"},
    }
    for name, value in changes.items():
        record[name] = {**record.get(name, {}), **value} if isinstance(value, Mapping) else value
    return MgmSettings.model_validate(record)


def planned(
    given: MgmSettings | None = None,
    *,
    variant: Literal["train", "smoke"] = "train",
    device: Literal["cuda", "cpu"] = "cuda",
    base_folder: Path = Path("/srv"),
    python: str = sys.executable,
    gpus: tuple[str, ...] = ("0",),
) -> PlannedMgm:
    return plan_mgm(
        given or settings(),
        variant=variant,
        device=device,
        gpus=gpus,
        python=python,
        base_folder=base_folder,
    )


def rendered(plan: PlannedMgm) -> dict[str, str]:
    return render_mgm(plan, title="test", version="0")


def write_run(plan: PlannedMgm, folder: Path) -> Path:
    """The run folder of `plan`, and its launch script."""
    for name, text in rendered(plan).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "launch.sh"


def run_stage(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A stage script in a process of its own."""
    return subprocess.run(
        [sys.executable, STAGES / f"{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Rows as JSONL, or as a JSON array by the name's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        json.dumps(rows)
        if path.suffix == ".json"
        else "".join(json.dumps(row) + "\n" for row in rows)
    )
    path.write_text(text, encoding="utf-8")
    return path
