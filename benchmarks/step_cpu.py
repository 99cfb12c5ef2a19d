"""What a step of ours costs on a CPU beside a step of plain TRL, in the same precision.

    python benchmarks/step_cpu.py [--repeats 3] [--steps 5] [--job demo-identity] [--out FILE]

Both train the job's model with LoRA on the job's own rows: ours as launch.sh starts it (its
environment, `runner.engines.sft.inside.train.train`), plain TRL as a script of twenty lines that
gives SFTTrainer the same rows, adapter, optimizer and precision, without launcher or callbacks, in
the environment that this is called from. They take turns, a process each, so that other work on the
machine falls on both. Printed: seconds a step (median over the steps behind the first, of all
turns) and CPU seconds a step (user and system, which other processes hardly change); and of each
pair of turns that follow one another ours as a multiple of TRL's: the median of the pairs, with the
least and the largest. Exit code 1 where a median is above --limit (--judge cpu looks at CPU seconds
alone, which is what counts on a machine that others use), or where a loss differs by a single bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WHO = ("plain", "ours")
KINDS = ("seconds", "cpu")
NAMES = {"seconds": "time", "cpu": "CPU time"}


def main() -> int:
    """Measure in turn, print, and say by the exit code whether ours is no slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--job", default="demo-identity")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, help="of both; without it, the plan's for both")
    parser.add_argument("--limit", type=float, default=1.0)
    parser.add_argument("--judge", choices=("both", "cpu"), default="both")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=WHO)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker, asked.folder)
        return 0
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in WHO}
    for turn in range(asked.repeats):
        for who in WHO if turn % 2 == 0 else reversed(WHO):
            with tempfile.TemporaryDirectory(prefix="runner-step-") as name:
                ready(Path(name), asked)
                found[who].append(measured(who, Path(name)))
            step = found[who][-1]["steps"]
            print(
                f"{who:<6}",
                *(f"{each['seconds']:.2f}/{each['cpu']:.2f}" for each in step),
                flush=True,
            )
    lines = compared(found)
    print(*lines["text"], sep="\n")
    if asked.out:
        asked.out.write_text(json.dumps({**lines, "turns": found}, indent=1) + "\n")
    losses = [turn["losses"] for turns in found.values() for turn in turns]
    same = all(each == losses[0] for each in losses)
    if not same:
        print("the losses differ:", *losses)
    judged = KINDS if asked.judge == "both" else ("cpu",)
    return int(not same or max(lines["ratios"][kind]["median"] for kind in judged) > asked.limit)


def compared(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of all turns, and the ratios of the pairs of turns, in words too.

    A process's first step warms up and does not count.
    """

    def median_of(turns: list[dict[str, Any]], kind: str) -> float:
        return statistics.median(step[kind] for turn in turns for step in turn["steps"][1:])

    medians = {
        who: {kind: median_of(turns, kind) for kind in KINDS} for who, turns in found.items()
    }
    pairs = list(zip(found["ours"], found["plain"], strict=True))
    ratios = {}
    for kind in KINDS:
        each = [median_of([ours], kind) / median_of([plain], kind) for ours, plain in pairs]
        ratios[kind] = {
            "median": statistics.median(each),
            "least": min(each),
            "largest": max(each),
            "pairs": each,
        }
    text = [
        f"{who:<6} {each['seconds']:.3f} s a step, {each['cpu']:.3f} CPU s"
        for who, each in medians.items()
    ]
    text += [
        f"ratio  {one['median']:.3f} of the {NAMES[kind]} "
        f"({one['least']:.3f} to {one['largest']:.3f}, {len(pairs)} pairs)"
        for kind, one in ratios.items()
    ]
    return {"medians": medians, "ratios": ratios, "text": text}


def ready(folder: Path, asked: argparse.Namespace) -> None:
    """A run folder with its plan and launch script."""
    from runner.common import durable
    from runner.engines.load import load_job
    from runner.engines.render import render
    from runner.engines.resolve import make_any_plan
    from runner.runs.folder import RunFolder

    sets = [
        f"training.max_steps={asked.steps}",
        f"training.precision={asked.precision}",
        "launch.device=cpu",
        "tracking.report_to=[]",
        *([f"launch.threads_per_process={asked.threads}"] if asked.threads else []),
        *asked.sets,
    ]
    plan, _ = make_any_plan(load_job(asked.job, sets))
    run = RunFolder(folder)
    for inner in (run.logs, run.checkpoints, run.engine):
        inner.mkdir(parents=True, exist_ok=True)
    for name, text in render(plan).items():
        durable.write_text(folder / name, text)


def measured(who: str, folder: Path) -> dict[str, Any]:
    """One turn, in a process of its own."""
    words = [sys.executable, __file__, "--worker", who, "--folder", str(folder)]
    environment = environment_of(folder / "launch.sh")
    if who == "plain":  # the caller's own, with as many threads
        environment = {**os.environ, "OMP_NUM_THREADS": environment["OMP_NUM_THREADS"]}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-4000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def environment_of(script: Path) -> dict[str, str]:
    """The environment in which a launch script starts what it starts."""
    text = script.read_text()
    before = text[: text.index('"$PYTHON" -P -m runner.engines.sft.inside')]
    told = subprocess.run(
        ["bash", "-c", before.replace("${BASH_SOURCE[0]}", str(script)) + "\nenv -0"],
        capture_output=True,
        check=True,
    )
    pairs = (entry.split(b"=", 1) for entry in told.stdout.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}


def work(who: str, folder: Path) -> None:
    """Train, and print the steps' seconds and the losses as JSON."""
    from transformers import TrainerCallback

    steps: list[dict[str, float]] = []
    losses: list[float] = []

    class Watch(TrainerCallback):
        """From one step's end to the next's: all that a step costs, what is logged of it too."""

        mark = (0.0, 0.0)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.mark = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wall, cpu = now()
            steps.append({"seconds": wall - self.mark[0], "cpu": cpu - self.mark[1]})
            self.mark = (wall, cpu)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                losses.append(float(logs["loss"]))

    {"plain": train_plain, "ours": train_ours}[who](folder, Watch())
    print(json.dumps({"steps": steps, "losses": losses}), flush=True)
    os._exit(0)


def now() -> tuple[float, float]:
    """Seconds of the clock, and of all threads on all cores."""
    spent = os.times()
    return time.perf_counter(), spent.user + spent.system


def train_ours(folder: Path, watch: Any) -> None:
    """As `python -m runner.engines.sft.inside` does."""
    from runner.engines.render import read_plan
    from runner.engines.sft.inside.control import Control
    from runner.engines.sft.inside.train.train import train
    from runner.engines.sft.inside.train.trainer import RunTrainer
    from runner.runs.folder import RunFolder

    prepare = RunTrainer.prepare_run

    def watched(self: Any, *args: Any, **more: Any) -> None:
        prepare(self, *args, **more)
        self.add_callback(watch)

    RunTrainer.prepare_run = watched  # type: ignore[method-assign]
    run = RunFolder(folder)
    train(read_plan(run.plan), run, Control(run, 0), resume=False)


def train_plain(folder: Path, watch: Any) -> None:
    """As a script of somebody who uses TRL would."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, set_seed
    from trl import SFTConfig, SFTTrainer

    from runner.engines.render import read_plan
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer, location
    from runner.engines.sft.inside.rows import prepare_rows

    plan = read_plan(folder / "plan.yaml")
    training = plan.training
    torch.set_num_threads(plan.launch.threads_per_process)
    tokenizer, _ = load_tokenizer(plan)
    rows = prepare_rows(plan, tokenizer, image_tokens=None)  # the same rows, encoded
    set_seed(training.seed)
    model = AutoModelForCausalLM.from_pretrained(
        location(plan)[0], dtype=torch.float32 if plan.precision == "fp32" else torch.bfloat16
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "plain"),
            max_steps=training.max_steps or -1,
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.lr_scheduler_type,
            warmup_steps=training.warmup_ratio,
            max_grad_norm=training.max_grad_norm,
            # by no name: transformers takes torch's AdamW in its fused form then, as our training
            # does; "adamw_torch" is the same in another order, and differs in the last bits
            **({} if training.optim == "adamw_torch" else {"optim": training.optim}),
            bf16=plan.precision == "bf16",
            gradient_checkpointing=training.gradient_checkpointing,
            use_cpu=True,
            seed=training.seed,
            data_seed=training.seed,
            logging_steps=1,
            save_strategy="no",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            disable_tqdm=True,
        ),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=plan.lora.r,
            lora_alpha=plan.lora.lora_alpha,
            lora_dropout=plan.lora.lora_dropout,
            target_modules=plan.lora.target_modules,
        ),
        processing_class=tokenizer,
        train_dataset=rows.train,
        callbacks=[watch],
    )
    trainer.train()


if __name__ == "__main__":
    sys.exit(main())
