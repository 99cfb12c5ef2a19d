"""Predicted against measured GPU memory, over models, methods, batches and lengths.

    python benchmarks/vram_battery.py WORK [--part 1/3] [--only TEXT] [--device cpu] [--table FILE]
                                      [--first N] [--case-seconds 180] [--seconds 540]

Each configuration is a `runner smoke` of three steps on random weights of the real shape: the whole
product, without a budget, its prediction before and NVML's peak of the process after. WORK keeps
the weights (make it lie in memory, /dev/shm, where there is room: an 8B model is 16 GB), which are
made once, and one line of JSON a configuration; those that are there are not run again, so a
battery can be spread over several calls. What a run leaves is deleted once its line is written.
The configurations that say most come first: --first 8 are those that first_contact.py measures.
One that takes more than --case-seconds is killed and listed as such; none is started where less
than a quarter of them is left of --seconds. At the end the table of all lines that are there, the
median and the 95th percentile of the error; exit code 1 where a goal is missed (3 % and 8 %) or a
run failed, 4 where some were not reached. Nothing corrects a prediction here: each has a state
folder of its own.

On a machine without a GPU `--device cpu` runs what fits one: the same, in host memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from below import adopt_orphans, end_descendants

from runner.launch.calibrate import training_peak
from runner.runs.folder import RunFolder
from runner.vram.prediction import Prediction

HERE = Path(__file__).resolve().parent
GOALS = {"median": 0.03, "p95": 0.08}


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    method: str
    rows: int
    tokens: int
    recompute: str
    """"all", "none", or a number of layers."""
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        tail = "".join(f" {text.split('.')[-1]}" for text in self.extra)
        return (
            f"{self.model} {self.method} {self.rows}x{self.tokens} recompute {self.recompute}{tail}"
        )

    def settings(self, models: Path, rows: Path, device: str) -> list[str]:
        method = {"lora": ["method=lora"], "full": ["method=full"]}.get(
            self.method, ["method=qlora", f"quantization.bits={self.method[0]}"]
        )
        recompute = [f"training.gradient_checkpointing={str(self.recompute != 'none').lower()}"]
        if self.recompute.isdigit():
            recompute.append(f"training.gradient_checkpointing_layers={self.recompute}")
        return [
            f"model={models / self.model}",
            f"data.train={rows}",
            "data.format=alpaca",
            "data.split=null",
            *method,
            *recompute,
            f"training.per_device_train_batch_size={self.rows}",
            "training.gradient_accumulation_steps=2",
            f"training.max_length={self.tokens}",
            "budget={}",  # what is to be measured, not held
            f"launch.device={device}",
            "launch.on=local",
            "tracking.report_to=[]",
            *self.extra,
        ]


FIRST = [
    Case("qwen2.5-7b", "lora", 2, 4096, "none"),
    Case("qwen2.5-0.5b", "lora", 4, 512, "none"),
    Case("qwen2.5-7b", "4bit", 2, 2048, "all"),
    Case("qwen2.5-0.5b", "full", 2, 512, "none"),
    Case("qwen2.5-7b", "lora", 1, 4096, "all"),
    Case("qwen2.5-0.5b", "4bit", 8, 512, "all"),
    Case("qwen2.5-7b", "lora", 2, 1024, "none"),
    Case("qwen2.5-0.5b", "full", 2, 512, "none", ("training.optim=adamw_8bit",)),
]
"""What says most: the goal's own step, each method, with and without recomputation, at two sizes
that need two sets of weights in all."""


def _cases() -> list[Case]:
    out = list(FIRST)
    for rows, tokens, recompute in ((8, 1024, "all"), (4, 2048, "12")):
        out.append(Case("qwen2.5-0.5b", "lora", rows, tokens, recompute))
    out.append(Case("qwen2.5-0.5b", "full", 4, 1024, "all"))
    for rows, tokens, recompute in (
        *((1, 512, "none"), (1, 512, "all"), (4, 512, "none"), (4, 1024, "all")),
        *((4, 1024, "18"), (2, 4096, "all")),
    ):
        out.append(Case("qwen2.5-3b", "lora", rows, tokens, recompute))
    out += [
        Case("qwen2.5-3b", "lora", 4, 512, "none", ("lora.lora_dropout=0.05",)),
        Case("qwen2.5-3b", "4bit", 1, 512, "none"),
        Case("qwen2.5-3b", "4bit", 4, 1024, "all"),
        Case("qwen2.5-3b", "8bit", 2, 512, "all"),
        Case("qwen2.5-3b", "lora", 2, 1024, "all", ("training.loss_chunk_tokens=256",)),
        Case("gemma-2b", "lora", 1, 1024, "all"),
        Case("gemma-2b", "lora", 2, 1024, "none"),
        Case("gemma-2b", "4bit", 4, 1024, "all"),
        Case("llama-3.1-8b", "lora", 1, 2048, "all"),
        Case("llama-3.1-8b", "lora", 2, 1024, "16"),
        Case("llama-3.1-8b", "4bit", 4, 1024, "all"),
    ]
    return out


CASES = _cases()
ON_CPU = [
    Case("smollm2-135m", "lora", 2, 256, "none"),
    Case("smollm2-135m", "lora", 4, 256, "all"),
    Case("smollm2-135m", "lora", 4, 256, "15"),
    Case("smollm2-135m", "full", 1, 256, "all"),
]
REHEARSAL = [
    Case("tiny", "lora", 2, 128, "none"),
    Case("tiny", "lora", 2, 128, "all"),
    Case("tiny", "full", 2, 128, "none"),
]
"""Of first_contact.py --rehearse: no figure of it says anything of a card."""


def make_rows(path: Path) -> Path:
    """Rows longer than any case's length, so that each batch is full; no row is another's."""
    if not path.is_file():
        draw = random.Random(5)  # noqa: S311 - rows, no secrets
        words = [f"{draw.choice('bcdfglmnprst')}{draw.choice('aeiou')}{n}" for n in range(400)]
        lines = []
        for number in range(64):  # 3 steps of 2 x 8 rows; 14 steps of 2
            text = " ".join(draw.choice(words) for _ in range(3000))  # two tokens a word and more
            lines.append(json.dumps({"instruction": f"Say {number}.", "input": "", "output": text}))
        path.write_text("\n".join(lines) + "\n")
    return path


def make_weights(name: str, models: Path) -> str | None:
    """The model's folder under `models`, made where it is not there; None, else what went wrong."""
    if (models / name / "config.json").is_file():
        return None
    command = [sys.executable, str(HERE / "full_size.py"), str(models), name]
    made = subprocess.run(command, capture_output=True, text=True)
    return (made.stderr.strip().splitlines() or ["no word"])[-1] if made.returncode else None


def measure(case: Case, work: Path, device: str, limit_s: float) -> dict[str, Any]:
    """Run one case for at most `limit_s` seconds; its record. What it leaves is deleted."""
    began = time.monotonic()
    models, runs = work / "models", work / "runs"
    if failed := make_weights(case.model, models):
        return {"case": case.name, "error": f"weights: {failed}"}
    made = time.monotonic() - began
    sets = case.settings(models, make_rows(work / "rows.jsonl"), device)
    command = [
        *(sys.executable, "-m", "runner", "smoke", "demo-identity", "--max-steps", "3"),
        *("--runs", str(runs), "--json"),
        *(part for text in sets for part in ("--set", text)),
    ]
    state = work / "state" / "".join(one if one.isalnum() else "-" for one in case.name)
    environment = {**os.environ, "RUNNER_STATE": str(state), "RUNNER_CACHE": str(work / "cache")}
    try:
        code, out, err = run_within(command, environment, limit_s - made)
        record = _record(case, runs, code, out, err, limit_s)
    finally:
        shutil.rmtree(runs, ignore_errors=True)
    return record | {"seconds": round(time.monotonic() - began, 1)}


def run_within(
    command: Sequence[str], environment: dict[str, str], seconds: float
) -> tuple[int | None, str, str]:
    """Exit code (None where time was up), stdout, stderr. Nothing is left below this process."""
    adopt_orphans()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        end_descendants()
        out, err = process.communicate()
        return None, out, err
    end_descendants()  # an ended smoke leaves none, a crashed one may
    return process.returncode, out, err


def _record(
    case: Case, runs: Path, code: int | None, out: str, err: str, limit_s: float
) -> dict[str, Any]:
    if code is None:
        return {"case": case.name, "error": f"killed after {limit_s:.0f} s"}
    try:
        job = json.loads(out)["jobs"][0]
    except (ValueError, LookupError):
        return {"case": case.name, "error": err.strip().splitlines()[-3:]}
    run = runs / str(job.get("run"))
    end = json.loads((run / "termination.json").read_text()) if run.is_dir() else {}
    peaks = end.get("peaks") or {}
    found = training_peak(RunFolder(run)) if run.is_dir() else None
    measured = found[0] if found else None
    predicted = end.get("predicted_bytes")
    if not job.get("passed") or not measured or not predicted:
        return {"case": case.name, "error": job.get("why") or "no figures", "peaks": peaks}
    prediction = Prediction.model_validate_json((run / "prediction.json").read_text())
    return {
        "case": case.name,
        "predicted_bytes": predicted,
        "low_bytes": prediction.low_bytes,
        "high_bytes": prediction.high_bytes,
        "measured_bytes": measured,
        "error": predicted / measured - 1,
        "peaks": peaks,
    }


def table(records: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """The table in Markdown, and whether the goals are met."""
    good = [one for one in records if isinstance(one["error"], float)]
    lines = [
        "| configuration | predicted GiB | measured GiB | error | torch reserved GiB |",
        "|---|---|---|---|---|",
    ]
    for one in good:
        reserved = one["peaks"].get("torch_max_reserved")
        shown = "" if reserved is None else f"{reserved / 2**30:.2f}"
        lines.append(
            f"| {one['case']} | {one['predicted_bytes'] / 2**30:.2f} | "
            f"{one['measured_bytes'] / 2**30:.2f} | {one['error']:+.1%} | {shown} |"
        )
    lines += [
        f"| {one['case']} | FAILED: {one['error']} | | | |" for one in records if one not in good
    ]
    errors = [abs(one["error"]) for one in good]
    met = len(good) == len(records) and bool(good)
    if len(errors) > 1:
        p95 = quantiles(errors, n=20, method="inclusive")[-1]
        lines += [
            "",
            f"{len(good)} configurations: median error {median(errors):.1%}, 95th {p95:.1%}",
        ]
        met = met and median(errors) <= GOALS["median"] and p95 <= GOALS["p95"]
    return lines, met


def main() -> int:
    """0 where every run passed and the goals are met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--part", default="1/1", help="this part of so many, such as 2/3")
    parser.add_argument("--only", default="", help="cases that have this text in their name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--table", type=Path, help="also write the table here")
    parser.add_argument("--first", type=int, help="only so many, which say most")
    parser.add_argument("--rehearse", action="store_true", help="a model of 2 M parameters, on CPU")
    parser.add_argument("--case-seconds", type=float, default=180.0, help="for one configuration")
    parser.add_argument("--seconds", type=float, help="for all of them; no limit without")
    given = parser.parse_args()
    began = time.monotonic()
    part, parts = (int(text) for text in given.part.split("/"))
    device = "cpu" if given.rehearse else given.device
    cases = REHEARSAL if given.rehearse else CASES if device == "cuda" else ON_CPU
    cases = cases[: given.first]
    chosen = [case for case in cases if given.only in case.name][part - 1 :: parts]
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"results-{'rehearsal' if given.rehearse else device}.jsonl"
    done = {}
    if path.is_file():
        done = {one["case"]: one for one in map(json.loads, path.read_text().splitlines())}
    unreached = []
    for case in chosen:
        if isinstance(done.get(case.name, {}).get("error"), float):
            continue
        left = (given.seconds or float("inf")) - (time.monotonic() - began)
        if left < given.case_seconds / 4:
            unreached.append(case.name)
            continue
        record = measure(case, work, device, min(given.case_seconds, left))
        with path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        done[case.name] = record
        print(f"{case.name}: {record['error']}", file=sys.stderr, flush=True)
    lines, met = table([done[case.name] for case in cases if case.name in done])
    lines += [f"not reached in {given.seconds:.0f} s: {name}" for name in unreached]
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return 4 if unreached else 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
