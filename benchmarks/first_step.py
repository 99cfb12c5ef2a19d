"""From Enter to the first optimizer step: `runner train JOB` beside a plain TRL script.

    python benchmarks/first_step.py [--repeats 3] [--model tiny|job|FOLDER] [--set K=V] [--cold]

Three take turns in one run, so that other work on the machine falls on all of them:

    plain   `accelerate launch` on a script of twenty lines: SFTTrainer, the same weights, rows,
            adapter, optimizer and precision, one process, as many threads
    seen    `runner train JOB` of a plan that has been trained before
    new     the same with a learning rate that no plan had before
    cold    with --cold: `runner train JOB` with an empty cache, as on the first day

Each is started as a process, and looked at until its first step's loss is written: seconds since
then, and CPU seconds of all processes that it started, those that have ended included. Then it is
ended. Printed: medians, and ours as a multiple of plain's. Exit code 1 where a ratio is above its
goal. The supervisor samples memory by the clock, so that on a busy machine, where the
wait is longer, ours takes more CPU seconds than on a free one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

GOALS = {"seen": 1.3, "new": 1.8}
KINDS = {"seconds": "time", "cpu": "CPU time"}
LIMIT_SECONDS = 900
PLAIN = """\
import json, os, sys, time
from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

asked = json.loads(os.environ["ASKED"])

class Watch(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **more):
        if "loss" in (logs or {}):
            with open(asked["metrics"], "a") as file:
                file.write(json.dumps({"step": state.global_step, "loss": logs["loss"]}) + "\\n")

trainer = SFTTrainer(
    model=asked["model"],
    args=SFTConfig(output_dir=asked["folder"], **asked["training"]),
    peft_config=LoraConfig(task_type="CAUSAL_LM", **asked["lora"]),
    train_dataset=load_dataset("json", data_files=asked["rows"], split="train"),
    callbacks=[Watch()],
)
trainer.train()
"""


def main() -> int:
    """Measure in turn, print, and say by the exit code whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", default="demo-identity", help="of rows in the messages format")
    parser.add_argument("--model", default="tiny", help="tiny, a folder, or job: the job's own")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runner-first-step-") as name:
        found = measure(asked, Path(name))
    told = compared(found)
    print(*told["text"], sep="\n")
    if asked.out:
        asked.out.write_text(json.dumps({**told, "turns": found}, indent=1) + "\n")
    return int(
        any(told["ratios"][who][kind] > goal for who, goal in GOALS.items() for kind in KINDS)
    )


def compared(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of the turns, and each as a multiple of plain's."""
    medians = {
        who: {kind: statistics.median(turn[kind] for turn in turns) for kind in KINDS}
        for who, turns in found.items()
    }
    ratios = {
        who: {kind: each[kind] / medians["plain"][kind] for kind in KINDS}
        for who, each in medians.items()
    }
    text = []
    for who, each in medians.items():
        line = f"{who:<6} {each['seconds']:6.2f} s {each['cpu']:6.2f} CPU s"
        if who != "plain":
            times = ", ".join(f"{ratios[who][kind]:.2f} of the {KINDS[kind]}" for kind in KINDS)
            line += f"   {times}"
        if who in GOALS:
            met = max(ratios[who].values()) <= GOALS[who]
            line += f"; goal {GOALS[who]}: {'met' if met else 'MISSED'}"
        text.append(line)
    return {"medians": medians, "ratios": ratios, "text": text}


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """What each turn took; the first of each fills caches and counts for nothing."""
    model = tiny_model(folder / "tiny", asked.job) if asked.model == "tiny" else asked.model
    sets = [
        *([] if model == "job" else [f"model={model}"]),
        *("training.max_steps=2", "training.logging_steps=1", "training.precision=fp32"),
        *("launch.device=cpu", "tracking.report_to=[]", *asked.sets),
    ]
    unseen = itertools.count(int(time.time()))  # no plan of an earlier call had such a rate
    who_all = ["plain", *GOALS, *(["cold"] if asked.cold else [])]
    found: dict[str, list[dict[str, float]]] = {who: [] for who in who_all}
    for turn in range(asked.repeats + 1):
        for who in who_all if turn % 2 else reversed(who_all):
            here = folder / f"{turn}-{who}"
            here.mkdir()
            environment = {**os.environ, "RUNNER_ON": "local"}
            if who == "plain":
                command, more = plain(asked.job, sets, here)
                environment |= more
            else:
                more_sets = [f"training.learning_rate=0.000{next(unseen)}"] if who == "new" else []
                command = ours(asked.job, [*sets, *more_sets], here)
                if who == "cold":
                    environment["RUNNER_CACHE"] = str(here / "cache")
            told = until_first_step(command, environment, here)
            count = "" if turn else "  (the first, not counted)"
            print(f"{who:<6} {told['seconds']:6.2f} s {told['cpu']:6.2f} CPU s{count}", flush=True)
            if turn:
                found[who].append(told)
    return found


def tiny_model(folder: Path, job: str) -> str:
    """A random qwen2 of two layers, its tokenizer from the job's rows: what is left are imports."""
    words = [
        "-m",
        "runner.engines.sft.inside.model.standin",
        "qwen2",
        str(folder),
        str(rows_of(job)),
    ]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return str(folder)


def rows_of(job: str) -> Path:
    """The job's file of training rows."""
    from runner.engines.load import load_job
    from runner.engines.sft.facts import gather

    path = gather(load_job(job)).rows["data.train"].path
    if path is None:
        raise SystemExit(f"the rows of {job} are not on this machine")
    return Path(path)


def ours(job: str, sets: list[str], folder: Path) -> list[str]:
    """The command that a user types, whatever runs there were before."""
    words = [word for one in sets for word in ("--set", one)]
    return [sys.executable, "-m", "runner", "train", job, "--runs", str(folder), *words]


def plain(job: str, sets: list[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """What a user of TRL types, with what the plan of the job says in place of constants."""
    from runner.engines.load import load_job
    from runner.engines.resolve import make_any_plan

    plan: Any
    plan, _ = make_any_plan(load_job(job, sets))
    training, threads = plan.training, str(plan.launch.threads_per_process)
    asked = {
        "model": plan.model.folder,
        "rows": str(rows_of(job)),
        "folder": str(folder / "out"),
        "metrics": str(folder / "metrics.jsonl"),
        "lora": {
            "r": plan.lora.r,
            "lora_alpha": plan.lora.lora_alpha,
            "lora_dropout": plan.lora.lora_dropout,
            "target_modules": plan.lora.target_modules,
        },
        "training": {
            "max_steps": training.max_steps,
            "per_device_train_batch_size": training.per_device_train_batch_size,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "gradient_checkpointing": training.gradient_checkpointing,
            "learning_rate": training.learning_rate,
            "max_length": training.max_length,
            "optim": training.optim,
            "bf16": False,
            "use_cpu": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
        },
    }
    script = folder / "train.py"
    script.write_text(PLAIN)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--quiet"]
    command += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", threads, str(script)]
    return command, {
        "ASKED": json.dumps(asked),
        "OMP_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder.parent / "datasets"),  # of all turns: seen before, too
    }


def until_first_step(
    command: list[str], environment: dict[str, str], folder: Path
) -> dict[str, float]:
    """Seconds, and CPU seconds of all processes, until a step's loss stands in a metrics.jsonl."""
    with (folder / "said.log").open("wb") as said:
        began = time.perf_counter()
        process = psutil.Popen(
            command, env=environment, cwd=folder, stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )
        try:
            while not any('"loss"' in path.read_text() for path in records(folder)):
                if process.poll() is not None or time.perf_counter() - began > LIMIT_SECONDS:
                    raise SystemExit(
                        f"no step came of {command}\n{(folder / 'said.log').read_text()[-4000:]}"
                    )
                time.sleep(0.01)
            seconds = time.perf_counter() - began
            return {"seconds": seconds, "cpu": cpu_seconds(process)}
        finally:
            end(process)


def records(folder: Path) -> list[Path]:
    """metrics.jsonl of a run folder, or of the plain script."""
    return [*folder.glob("metrics.jsonl"), *folder.glob("*/*/metrics.jsonl")]


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and of all that it started, the ended ones included."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def end(process: psutil.Process) -> None:
    """Kill it and all that it started: what comes behind the first step is of no interest."""
    started = process.children(recursive=True) if process.is_running() else []
    for one in (*started, process):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
