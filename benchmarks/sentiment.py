"""Whether a training teaches what it should: SmolLM2-135M on short Chinese reviews, held-out rows.

    .venv/bin/python benchmarks/sentiment.py [--keep DIR] [--shared DIR]

Takes the short reviews of ChnSentiCorp (8 to 40 characters, as many good as bad) into a folder of
its own, writes a job file, runs `runner train` and `runner evaluate` as a user does, and prints
accuracy with its interval, for the base model too, and the minutes. Nothing is copied out of that
folder: the rows state no licence. Exit code 1 where the goals below are missed; 10 to 20 minutes on
two CPU cores. docs/evaluate.md holds the figures of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

GOAL_ACCURACY = 0.75
GOAL_MINUTES = 10.0
SHORTEST, LONGEST = 8, 40  # characters
SEED = 7
REPOSITORY = Path(__file__).resolve().parents[1]
JOB = """\
description: SmolLM2-135M-Instruct tells good from bad Chinese reviews
model: builtin:smollm2-135m-instruct
method: lora
lora: {r: 16, lora_alpha: 32, lora_dropout: 0.0, target_modules: all-linear}
data:
  train: rows.jsonl
  format: text_label
  system: You classify reviews.
  prompt: "Classify the review as positive or negative. Reply with one word.\\n\\nReview: {text}\\n\
Sentiment:"
  labels: {"0": negative, "1": positive}
  clean: {duplicates: drop, conflicts: drop}
  split: {eval: 0.02, test: 0.14, stratify: label, seed: 42}
training:
  max_steps: 48
  per_device_train_batch_size: 8
  learning_rate: 1.0e-3
  lr_scheduler_type: linear
  warmup_ratio: 0.1
  max_length: 192
evaluation: {task: classification, max_new_tokens: 4, per_device_batch_size: 16}
budget: {host_memory: 8GiB}
"""


def short_rows(folder: Path) -> list[dict[str, Any]]:
    """The short rows of both files, balanced by label, in a drawn order."""
    by_label: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for name in ("chnsenticorp_train.jsonl", "chnsenticorp_dev.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if SHORTEST <= len(row["text"].strip()) <= LONGEST:
                by_label[row["label"]].append(row)
    draw = random.Random(SEED)  # noqa: S311 - no secret
    size = min(map(len, by_label.values()))
    rows = [row for label in sorted(by_label) for row in draw.sample(by_label[label], size)]
    draw.shuffle(rows)
    return rows


def runner(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a command of runner prints; its progress is passed on."""
    command = [sys.executable, "-m", "runner", *arguments, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"runner {' '.join(arguments)} ended with {done.returncode}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def figure(record: dict[str, Any]) -> str:
    low, high = record["low"], record["high"]
    interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if low is not None else ""
    return f"{100 * record['value']:.1f} %{interval}"


def main() -> int:
    """0 where the goals are met, 1 where not, 2 where the rows are not here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared")
    parser.add_argument("--keep", type=Path, help="folder to work in, kept afterwards")
    arguments = parser.parse_args()
    data = arguments.shared / "data"
    if not (data / "chnsenticorp_train.jsonl").is_file():
        print(f"the ChnSentiCorp rows are not in {data}; --shared names the folder")
        return 2
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        rows = short_rows(data)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(text, encoding="utf-8")
        (folder / "sentiment.yaml").write_text(JOB, encoding="utf-8")
        started = time.perf_counter()
        trained = runner(folder, "train", "sentiment.yaml")
        train_minutes = (time.perf_counter() - started) / 60
        started = time.perf_counter()
        record = runner(folder, "evaluate", "@last")
        evaluate_minutes = (time.perf_counter() - started) / 60
    one = record["sets"][0]
    seen = ", ".join(f"{each['seen_prompts']} of {each['rows']}" for each in one["trained_on"])
    print(
        f"rows       {len(rows)} short reviews; {one['rows']} held out; trained on: {seen or '?'}"
    )
    print(f"base       {figure(one['accuracy']['base'])}")
    print(f"trained    {figure(one['accuracy']['model'])}")
    print(f"difference {figure(one['accuracy']['difference'])}")
    print(f"McNemar p  {one['accuracy']['mcnemar_p']:.2g}")
    print(f"macro F1   {figure(one['macro_f1']['model'])}, base {figure(one['macro_f1']['base'])}")
    print(f"majority   {figure(one['majority']['accuracy'])}")
    print(
        f"training   {train_minutes:.1f} minutes ({trained.get('steps', '?')} steps), loading too"
    )
    print(f"evaluation {evaluate_minutes:.1f} minutes, both models")
    good = one["accuracy"]["model"]["value"] >= GOAL_ACCURACY and train_minutes <= GOAL_MINUTES
    print("met" if good else f"MISSED: {GOAL_ACCURACY:.0%} within {GOAL_MINUTES:g} minutes")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
