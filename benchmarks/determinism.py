"""The same bits from run to run, and what they cost: bf16 LoRA at the size of 0.5B.

    python benchmarks/determinism.py WORK [--table FILE.md]       on one GPU, under ten minutes
    python benchmarks/determinism.py WORK --device cpu --tiny     anywhere, on 260K parameters

Random weights of the real shape (full_size.py) and rows drawn here; no network. With
`deterministic: true` a plan is run twice, and once more with a stop in the middle and a resume: the
three adapters' sha256 are to be equal, and so are the logged losses. Then the speed with it and
without: four runs in the order with, without, without, with, so that a card that warms up favours
neither, all of rows of one length; tokens a second is the median over a run's steps but the first
five. All of it through the
command line and launch.sh, as every run. Exit code 1 where the hashes differ or a run failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
WARM_UP_STEPS = 5
SECONDS = 300  # that one run may take


@dataclass(frozen=True)
class Size:
    """What is trained; steps of the runs that are compared, and of those that are timed."""

    model: str
    rows: int
    tokens: int
    batch: int
    same_steps: int
    timed_steps: int


FULL = Size("qwen2.5-0.5b", 192, 1024, 8, 60, 60)
TINY = Size("stories260k", 64, 64, 2, 8, 12)


def make_rows(path: Path, size: Size, *, full: bool) -> Path:
    """Rows of many lengths, up to beyond the longest that is taken, or all `full`: beyond it.

    No row is another's. What is compared for its bits has all lengths; what is timed has one, so
    that no kernel's plan for a new length falls on one half of the runs and not on the other.
    """
    draw = random.Random(5)  # noqa: S311 - rows, no secrets
    words = [f"{draw.choice('bcdfglmnprst')}{draw.choice('aeiou')}{n}" for n in range(400)]
    lines = []
    for number in range(size.rows):
        length = size.tokens if full else draw.randint(size.tokens // 16, size.tokens)
        text = " ".join(draw.choice(words) for _ in range(length))
        lines.append(json.dumps({"instruction": f"Say {number}.", "input": "", "output": text}))
    path.write_text("\n".join(lines) + "\n")
    return path


class Bench:
    """Runs in a folder of their own."""

    def __init__(self, work: Path, size: Size, model: Path, device: str) -> None:
        self.work, self.size, self.device = work, size, device
        self._rows = {
            full: make_rows(work / f"rows-{full}.jsonl", size, full=full) for full in (False, True)
        }
        self._settings = [
            f"model={model}",
            "data.format=alpaca",
            "data.split=null",
            "method=lora",
            "lora={r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: all-linear}",
            "training.precision=bf16",
            f"training.max_length={size.tokens}",
            f"training.per_device_train_batch_size={size.batch}",
            "training.gradient_accumulation_steps=2",
            "training.lr_scheduler_type=cosine",
            "training.warmup_ratio=0.1",
            "training.stages=[]",
            "training.eval_steps=null",
            "training.save_steps=null",
            "budget={}",
            f"launch.device={device}",
            "launch.on=local",
            "tracking.report_to=[]",
        ]
        self.environment = {
            **os.environ,
            "RUNNER_CACHE": str(work / "cache"),
            "RUNNER_STATE": str(work / "state"),
        }

    def command(
        self, name: str, steps: int, deterministic: bool, *more: str, full: bool = False
    ) -> list[str]:
        chosen = [
            *self._settings,
            f"data.train={self._rows[full]}",
            f"training.max_steps={steps}",
            f"deterministic={str(deterministic).lower()}",
        ]
        sets = [part for text in chosen for part in ("--set", text)]
        runs = ["--runs", str(self.work / name)]
        return [sys.executable, "-m", "runner", "train", "demo-identity", *runs, *more, *sets]

    def run(self, name: str, steps: int, deterministic: bool, *, full: bool = False) -> Path:
        """The folder of a run that completed."""
        command = self.command(name, steps, deterministic, "--json", full=full)
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=SECONDS
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-6:]}")
        return Path(json.loads(done.stdout)["folder"])

    def stopped(self, name: str, steps: int, at: int) -> Path:
        """The folder of a deterministic run, asked to end after step `at`, and gone on with."""
        process = subprocess.Popen(
            self.command(name, steps, True),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environment,
            start_new_session=True,
        )
        try:
            self._await_step(name, at, process)
            process.send_signal(signal.SIGINT)  # as Ctrl-C: a checkpoint, then the end
            process.wait(SECONDS)
        finally:
            process.kill()
        return self.run(name, steps, True)

    def _await_step(self, name: str, at: int, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and process.poll() is None:
            found = list((self.work / name).glob("*/*/metrics.jsonl"))
            if found and len(steps_of(found[0].parent)) >= at:
                return
            time.sleep(0.02)
        raise RuntimeError(f"{name}: step {at} was not seen in time to stop it")


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The logged steps; the last line may be in mid-write."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and '"loss"' in line]


def adapter_of(run: Path) -> str:
    return str(json.loads((run / "termination.json").read_text())["adapter_sha256"])


def losses_of(run: Path) -> str:
    text = "".join(f"{each['step']} {each['loss']!r}\n" for each in steps_of(run))
    return hashlib.sha256(text.encode()).hexdigest()


def tokens_per_second(run: Path) -> float:
    return median(each["tokens_per_second"] for each in steps_of(run)[WARM_UP_STEPS:])


def saved_of(run: Path) -> list[int]:
    """The steps after which checkpoints lie."""
    return sorted(
        int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("checkpoint-*")
    )


def same_bits(bench: Bench) -> tuple[list[str], bool]:
    """The three runs of one plan as lines of Markdown, and whether they are equal."""
    steps = bench.size.same_steps
    runs = [
        ("run", bench.run("first", steps, True)),
        ("the same again", bench.run("again", steps, True)),
        ("stopped and resumed", bench.stopped("stopped", steps, steps // 4)),
    ]
    stopped = saved_of(runs[2][1])[:1]
    lines = ["| run | adapter sha256 | losses sha256 |", "|---|---|---|"]
    for name, run in runs:
        after = f" (after step {stopped[0]})" if run == runs[2][1] and stopped else ""
        lines.append(f"| {name}{after} | `{adapter_of(run)[:16]}` | `{losses_of(run)[:16]}` |")
    equal = len({(adapter_of(run), losses_of(run)) for _, run in runs}) == 1
    cut = bool(stopped) and stopped[0] < steps
    lines += ["", f"{steps} steps: {'equal' if equal else 'NOT EQUAL'}"]
    if not cut:
        lines.append("The stop came too late: nothing was resumed.")
    return lines, equal and cut


def cost(bench: Bench) -> list[str]:
    """Tokens a second with and without, as lines of Markdown."""
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for number, deterministic in enumerate((True, False, False, True)):
        run = bench.run(f"timed-{number}", bench.size.timed_steps, deterministic, full=True)
        speeds[deterministic].append(tokens_per_second(run))
    lines = ["| deterministic | tokens/s, each run | mean |", "|---|---|---|"]
    for deterministic, found in speeds.items():
        shown = ", ".join(f"{each:,.0f}" for each in found)
        lines.append(f"| {str(deterministic).lower()} | {shown} | {sum(found) / 2:,.0f} |")
    ratio = sum(speeds[True]) / sum(speeds[False])
    return [*lines, "", f"deterministic / not: {ratio:.3f} ({ratio - 1:+.1%} tokens a second)"]


def model_folder(work: Path, size: Size) -> Path:
    """The weights: the shared 260K ones, or random ones of the real shape, made here."""
    if size is TINY:
        shared = Path(os.environ.get("RUNNER_SHARED", HERE.parent.parent / "shared"))
        return (shared / "models" / size.model).resolve()
    made = [sys.executable, str(HERE / "full_size.py"), str(work / "models"), size.model]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    return work / "models" / size.model


def place() -> str:
    """The card, driver and torch, in a line."""
    import torch

    if not torch.cuda.is_available():
        return f"CPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def main() -> int:
    """0 where the three runs are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for weights and runs; a new one")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="260K parameters, some steps")
    parser.add_argument("--table", type=Path, help="also write the tables here")
    given = parser.parse_args()
    work, size = given.work.absolute(), TINY if given.tiny else FULL
    work.mkdir(parents=True, exist_ok=True)
    if list(work.glob("*/*/*/plan.yaml")):
        parser.error(f"{work} holds runs already; give a new folder")
    started = time.monotonic()
    bench = Bench(work, size, model_folder(work, size), given.device)
    try:
        lines, equal = same_bits(bench)
        print("\n".join(lines), flush=True)
        spent = cost(bench)
    except (RuntimeError, subprocess.SubprocessError) as error:
        print(f"FAILED: {error}")
        return 1
    about = (
        f"{size.model}, LoRA r 16 in bf16, {size.batch} x up to {size.tokens} tokens x 2 "
        f"accumulated; {place()}; {time.monotonic() - started:.0f} s in all"
    )
    print("\n".join(["", *spent, "", about]), flush=True)
    if given.table:
        given.table.write_text("\n".join([*lines, "", *spent, "", about]) + "\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
