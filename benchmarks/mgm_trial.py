"""Render a CPU trial of the MGM engine on tiny random weights, run it, print its figures.

    python benchmarks/mgm_trial.py --toolkit DIR --python EXE --weights DIR --rows DIR --run DIR

Run by runner's environment; benchmarks/mgm_trial.sh makes what it needs and calls it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from runner.engine.mgm.plan import PlannedMgm, plan_mgm
from runner.engine.mgm.render import render_mgm
from runner.job_mgm import MgmSettings


def trial_plan(toolkit: Path, python: Path, weights: Path, rows: Path) -> PlannedMgm:
    """A smoke on the CPU: 5 steps of each training on the 200 rows, images at 64 pixels."""
    settings = MgmSettings.model_validate(
        {
            "toolkit": str(toolkit),
            "model_name_or_path": str(weights / "gemma-2b-it-tiny"),
            "vision_tower": str(weights / "openai/clip-tiny"),
            "vision_tower_aux": str(weights / "openclip-convnext-large-d-320-random"),
            "image_size_aux": 64,
            "open_images": "all",
            "pretrain": {
                "data_path": str(rows / "data.jsonl"),
                "questions": str(rows / "data.llava.json"),
                "dataloader_num_workers": 0,
            },
            "finetune": {"data_path": str(rows / "data.llava.json"), "dataloader_num_workers": 0},
        }
    )
    return plan_mgm(
        settings, variant="smoke", device="cpu", python=str(python), base_folder=Path.cwd()
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("toolkit", "python", "weights", "rows", "run"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    # absolute() keeps a virtual environment's interpreter, which resolve() would follow out of it
    plan = trial_plan(
        given.toolkit.absolute(),
        given.python.absolute(),
        given.weights.absolute(),
        given.rows.absolute(),
    )
    run = given.run.absolute()
    shutil.rmtree(run, ignore_errors=True)
    for name, text in render_mgm(plan, title="CPU trial", version="trial").items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    started = time.monotonic()
    ended = subprocess.run(["bash", run / "launch.sh"], cwd="/").returncode
    seconds = time.monotonic() - started
    if ended:
        print(f"trial: launch.sh ended with {ended}", file=sys.stderr)
        return ended
    again = subprocess.run(
        ["bash", run / "launch.sh"], cwd="/", capture_output=True, text=True, check=True
    )
    print(f"trial: {seconds:.0f} s, then {again.stdout.count('done and unchanged')} stages skipped")
    folder = run / "training_dirs"
    for name in (plan.pretrain_name, plan.finetune_name):
        state = json.loads((folder / name / "trainer_state.json").read_text("utf-8"))
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        print(f"trial: {name}: losses {' '.join(f'{loss:.4f}' for loss in losses)}")
        for file in sorted((folder / name).glob("*.bin")):
            print(f"trial: {name}/{file.name}: {file.stat().st_size:,} bytes")
    merged = folder / plan.merged_name
    size = sum(file.stat().st_size for file in merged.iterdir())
    print(f"trial: {plan.merged_name}: {size:,} bytes")
    return subprocess.run(
        [
            *(given.python.absolute(), Path(__file__).with_name("mgm_peft.py")),
            *(plan.model_name_or_path, folder / plan.finetune_name, merged),
        ]
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
