"""Render a CPU trial of the MGM engine on tiny random weights, run it, print its figures.

    python benchmarks/mgm_trial.py --toolkit DIR --python EXE --weights DIR --rows DIR --run DIR \\
        [--compare docs/mgm.md]

Run by runner's environment; benchmarks/mgm_trial.sh makes what it needs and calls it. It prints the
table that docs/mgm.md shows; with --compare it ends with 1 where that page's losses are others by
more than 0.02 (another CPU's bf16 can differ in the third digit). RUN's neighbour job.yaml is the
same trial as a job, for runner check, smoke and train.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from runner.engines.mgm.job import MgmSettings
from runner.engines.mgm.plan import PlannedMgm, plan_mgm
from runner.engines.mgm.render import render_mgm

LOSS_TOLERANCE = 0.02


def trial_job(toolkit: Path, weights: Path, rows: Path) -> dict[str, Any]:
    """The settings: images at 64 pixels, no processes of their own that read them."""
    return {
        "toolkit": str(toolkit),
        "model_name_or_path": str(weights / "gemma-2b-it-tiny"),
        "vision_tower": str(weights / "openai/clip-tiny"),
        "vision_tower_aux": str(weights / "openclip-convnext-large-d-320-random"),
        "image_size_aux": 64,
        "num_train_epochs": 3,  # of a training that is no smoke: one epoch would be one step
        "open_images": "all",
        "pretrain": {
            "data_path": str(rows / "pretrain.jsonl"),
            "questions": str(rows / "finetune.json"),
            "dataloader_num_workers": 0,
        },
        "finetune": {"data_path": str(rows / "finetune.json"), "dataloader_num_workers": 0},
    }


def trial_plan(job: dict[str, Any], python: Path) -> PlannedMgm:
    """A smoke of it on the CPU: 5 steps of each training."""
    return plan_mgm(
        MgmSettings.model_validate(job),
        variant="smoke",
        device="cpu",
        python=str(python),
        base_folder=Path.cwd(),
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("toolkit", "python", "weights", "rows", "run"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--compare", type=Path, metavar="PAGE")
    given = parser.parse_args()
    # absolute() keeps a virtual environment's interpreter, which resolve() would follow out of it
    python, run = given.python.absolute(), given.run.absolute()
    job = trial_job(given.toolkit.absolute(), given.weights.absolute(), given.rows.absolute())
    plan = trial_plan(job, python)
    shutil.rmtree(run, ignore_errors=True)
    for name, text in render_mgm(plan, title="CPU trial", version="trial").items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    head = {"engine": "mgm", "python": str(python), "launch": {"device": "cpu"}}
    (run.parent / "job.yaml").write_text(yaml.safe_dump({**head, **job}, sort_keys=False))
    started = time.monotonic()
    ended = subprocess.run(["bash", run / "launch.sh"], cwd="/").returncode
    seconds = time.monotonic() - started
    if ended:
        print(f"trial: launch.sh ended with {ended}", file=sys.stderr)
        return ended
    again = subprocess.run(
        ["bash", run / "launch.sh"], cwd="/", capture_output=True, text=True, check=True
    )
    folder = run / "training_dirs"
    peft = subprocess.run(
        [
            *(python, Path(__file__).with_name("mgm_peft.py")),
            *(plan.model_name_or_path, folder / plan.finetune_name, folder / plan.merged_name),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    skipped = again.stdout.count("done and unchanged")
    table = figures(folder, plan, seconds, skipped, peft.stdout.strip())
    print("\n".join(["", *table]))
    if peft.returncode:
        return peft.returncode
    differing = [] if given.compare is None else differences(table, given.compare.read_text())
    for line in differing:
        print(f"trial: {line}", file=sys.stderr)
    return 1 if differing else 0


def figures(folder: Path, plan: PlannedMgm, seconds: float, skipped: int, peft: str) -> list[str]:
    """The rows of the table in docs/mgm.md."""
    rows = [("", "")]
    for name, training in (
        (plan.pretrain_name, plan.pretrain),
        (plan.finetune_name, plan.finetune),
    ):
        state = json.loads((folder / name / "trainer_state.json").read_text("utf-8"))
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        stage = "pretrain" if training is plan.pretrain else "finetune"
        batch = training.global_batch_size
        what = f"losses of {stage}, {batch} {'rows' if batch > 1 else 'row'} a step"
        rows.append(
            (f"{what}, {training.learning_rate:g}", " ".join(f"{loss:.4f}" for loss in losses))
        )
    merged = folder / plan.merged_name
    sizes = {
        "mm_projector.bin": folder / plan.pretrain_name / "mm_projector.bin",
        "adapter_model.bin": folder / plan.finetune_name / "adapter_model.bin",
        "non_lora_trainables.bin": folder / plan.finetune_name / "non_lora_trainables.bin",
    }
    told = [f"`{name}` {path.stat().st_size:,} B" for name, path in sizes.items()]
    told.append(f"merged {sum(file.stat().st_size for file in merged.iterdir()):,} B")
    rows += [
        ("merge against PEFT's `merge_and_unload`", peft.removeprefix("peft: ")),
        ("second start", f"{skipped} stages done and unchanged, nothing run but preflight"),
        ("time from preflight to the loaded model", f"{seconds:.0f} s"),
        ("sizes", ", ".join(told)),
    ]
    lines = [f"| {label} | {text} |" for label, text in rows]
    return [lines[0].replace("  ", " "), "|---|---|", *lines[1:]]


def differences(table: list[str], page: str) -> list[str]:
    """Where the page's rows of losses, of the merge and of the second start are others."""
    shown = {_label(line): line for line in page.splitlines() if line.startswith("| ")}
    found = []
    for line in table:
        label = _label(line)
        if not label.startswith(("losses", "merge", "second")):
            continue
        there = shown.get(label)
        if there is None:
            found.append(f"the page has no row {label!r}")
        elif not _alike(line, there):
            found.append(f"the page has {there}, measured was {line}")
    return found


def _label(line: str) -> str:
    return line.split("|")[1].strip() if line.count("|") > 2 else ""


def _alike(one: str, other: str) -> bool:
    numbers = [[float(word) for word in re.findall(r"\d+\.\d{4}", line)] for line in (one, other)]
    if not numbers[0] or len(numbers[0]) != len(numbers[1]):
        return one == other
    return all(abs(a - b) <= LOSS_TOLERANCE for a, b in zip(*numbers, strict=True))


if __name__ == "__main__":
    sys.exit(main())
