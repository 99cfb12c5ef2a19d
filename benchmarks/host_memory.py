"""Predicted against measured host memory, over CPU configurations of one and two processes.

    python benchmarks/host_memory.py WORK [--only TEXT] [--part 1/3] [--table FILE]

Each configuration runs in a process of its own, under a time limit: a plan is made of a job as
`runner train` makes it, rendered, and its launch.sh started; what is measured is what the guard
measures (runner.machine.host_sampler: PSS of the processes, ten times a second). WORK keeps
models of random weights, runs and a line of JSON a configuration, written as it ends; those that
are there are not run again. Then each is predicted, and nothing corrects it. At the end the table
of all that is there; exit code 1 where a goal is missed (95 % of the peaks inside their interval,
median error 8 %) or a run failed.

Other processes that map the same libraries take a share of their pages off a PSS: run it from an
interpreter whose packages nobody else uses (a copy of the environment), or alone.
"""

from __future__ import annotations

import argparse
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
GOALS = {"inside": 0.95, "median": 0.08}
LIMIT_SECONDS = 300
STEPS = 4
"""libc keeps more after the first steps; between 6 and 16 no more growth was seen."""
MIB = 1 << 20

BASE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def _shape(vocabulary: int, hidden: int, layers: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        **BASE,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        **more,
    }


QWEN2 = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "tie_word_embeddings": True,
}
QWEN3 = {**QWEN2, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 64}
GEMMA = {
    "model_type": "gemma",
    "architectures": ["GemmaForCausalLM"],
    "tie_word_embeddings": True,
    "head_dim": 64,
}
MODELS = {
    "tiny": _shape(512, 64, 5, 172),
    "small": _shape(8192, 256, 6, 704),
    "middle": _shape(6400, 512, 8, 1408),
    "wide": _shape(24000, 640, 6, 1728, **QWEN2),
    "words": _shape(100_000, 256, 4, 704, **QWEN2),
    "deep": _shape(4096, 320, 20, 864),
    "qwen3": _shape(32000, 448, 6, 1216, **QWEN3),
    "gemma": _shape(48000, 384, 5, 1536, **GEMMA),
    "large": _shape(16000, 896, 10, 2432),
}


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    method: str
    """lora, full, 4bit or 8bit."""
    ranks: int
    sharded: str
    """none, zero2 or zero3."""
    rows: int
    tokens: int
    extra: tuple[str, ...] = ()
    held_out: bool = False
    """Whether no constant of the model was chosen with this configuration in sight."""

    @property
    def name(self) -> str:
        tail = "".join(f" {text.split('.')[-1]}" for text in self.extra)
        spread = self.sharded if self.sharded != "none" else "ddp" if self.ranks > 1 else ""
        shown = f"{self.model} {self.method} {self.rows}x{self.tokens} {self.ranks}p"
        return " ".join([shown, *([spread] if spread else [])]) + tail

    def settings(self) -> list[str]:
        method = {"lora": ["method=lora"], "full": ["method=full"]}.get(
            self.method, ["method=qlora", f"quantization.bits={self.method[0]}"]
        )
        return [
            *method,
            f"launch.num_processes={self.ranks}",
            f"launch.deepspeed={self.sharded}",
            f"training.per_device_train_batch_size={self.rows}",
            f"training.max_length={self.tokens}",
            *self.extra,
        ]


RECOMPUTE = "training.gradient_checkpointing=true"
TWICE = "training.gradient_accumulation_steps=2"
HALF = "training.precision=bf16"
SAVES = "training.save_steps=1"
EVAL = ("data.split.eval=0.3", "training.eval_steps=1")
CASES = [
    Case("tiny", "lora", 1, "none", 2, 64),
    Case("tiny", "lora", 2, "none", 2, 64),
    Case("small", "lora", 1, "none", 2, 256),
    Case("small", "lora", 1, "none", 8, 512, (RECOMPUTE,)),
    Case("middle", "lora", 1, "none", 4, 256),
    Case("wide", "lora", 1, "none", 2, 512),
    Case("words", "lora", 1, "none", 4, 256),
    Case("words", "lora", 1, "none", 2, 256, (HALF,), True),
    Case("deep", "lora", 1, "none", 2, 256, (TWICE,), True),
    Case("large", "lora", 1, "none", 1, 256, (), True),
    Case("gemma", "lora", 1, "none", 2, 256, (RECOMPUTE,)),
    Case("middle", "lora", 1, "none", 2, 256, EVAL, True),
    Case("middle", "full", 1, "none", 2, 128),
    Case("wide", "full", 1, "none", 1, 256),
    Case("words", "full", 1, "none", 1, 256, (SAVES,)),
    Case("small", "full", 1, "none", 4, 256, (TWICE,)),
    Case("qwen3", "full", 1, "none", 2, 256, (), True),
    Case("deep", "full", 1, "none", 2, 256, (SAVES, RECOMPUTE), True),
    Case("middle", "full", 1, "none", 2, 256, ("training.optim=adamw_8bit",)),
    Case("large", "full", 1, "none", 1, 128, (HALF,), True),
    Case("middle", "4bit", 1, "none", 2, 256),
    Case("wide", "4bit", 1, "none", 2, 256, (RECOMPUTE,), True),
    Case("large", "4bit", 1, "none", 1, 256, (), True),
    Case("middle", "8bit", 1, "none", 2, 256),
    Case("small", "lora", 2, "none", 4, 256),
    Case("wide", "lora", 2, "none", 2, 256),
    Case("words", "lora", 2, "none", 2, 256, (TWICE,), True),
    Case("middle", "full", 2, "none", 2, 128),
    Case("qwen3", "full", 2, "none", 1, 256),
    Case("small", "full", 2, "none", 4, 256, (), True),
    Case("middle", "4bit", 2, "none", 2, 256, (), True),
    Case("middle", "lora", 2, "zero2", 2, 256),
    Case("middle", "full", 2, "zero2", 2, 128),
    Case("wide", "full", 2, "zero2", 1, 128, (), True),
    Case("small", "full", 1, "zero2", 4, 256, (), True),
    Case("middle", "lora", 2, "zero3", 2, 256),
    Case("middle", "full", 2, "zero3", 2, 128),
    Case("wide", "full", 2, "zero3", 1, 128, (), True),
    Case("small", "lora", 2, "zero3", 4, 256, (), True),
    Case("deep", "full", 2, "zero2", 2, 256, (HALF,), True),
]


def make_vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Entries and merges of a byte-level BPE: as large as the model's, as real tokenizers are.

    What is merged are letters that no row has, so that each letter of a row is a token.
    """
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = {"<pad>": 0, "<eos>": 1}
    for letter in alphabet:
        entries[letter] = len(entries)
    free = [letter for letter in alphabet if not letter.isascii() and letter != "\u0120"]
    merges, longer = [], list(free)
    for first in longer:
        for second in free:
            if len(entries) >= size:
                return entries, merges
            entries[first + second] = len(entries)
            merges.append((first, second))
            longer.append(first + second)
    return entries, merges


def make_model(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder of random weights in the config's shape, and a tokenizer for it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    settings = {key: value for key, value in config.items() if key != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **settings)
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    entries, merges = make_vocabulary(int(config["vocab_size"]))
    tokenizer = Tokenizer(models.BPE(entries, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
    )
    fast.chat_template = (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    )
    fast.save_pretrained(folder)
    return folder


def make_rows(path: Path, tokens: int) -> Path:
    """32 rows, each longer than `tokens`; no row is another's."""
    if not path.is_file():
        draw = random.Random(tokens)  # noqa: S311 - rows, no secrets
        lines = []
        for number in range(32):
            text = "".join(draw.choice("aeiou bcdfglmnprst") for _ in range(tokens + 16))
            turns = [{"role": "user", "content": f"Say {number}."}]
            turns.append({"role": "assistant", "content": text})
            lines.append(json.dumps({"messages": turns}))
        path.write_text("\n".join(lines) + "\n")
    return path


def make_job(case: Case, work: Path) -> Path:
    """The job file of a case."""
    from runner.common.yaml_text import to_yaml

    model = work / "models" / case.model
    if not (model / "tokenizer_config.json").is_file():
        # by another process: torch in this one would take its share of the libraries' pages
        made = [sys.executable, __file__, str(work), "--make", case.model]
        subprocess.run(made, check=True, capture_output=True)
    rows = make_rows(work / f"rows-{case.tokens}.jsonl", case.tokens)
    path = work / "job.yaml"
    job = {
        "model": str(model),
        "data": {"train": str(rows), "format": "messages"},
        "training": {"max_steps": STEPS, "save_steps": None},
        "launch": {"device": "cpu"},
        "tracking": {"report_to": []},
    }
    path.write_text(to_yaml(job))
    return path


def measure(case: Case, work: Path) -> dict[str, Any]:
    """Run one case to its end; its record, as the guard would have measured it."""
    import psutil

    from runner.engines.load import load_job
    from runner.engines.render import render
    from runner.engines.sft.facts import gather
    from runner.engines.sft.resolve import make_plan
    from runner.machine.host_sampler import HostSampler
    from runner.machine.schedule import Schedule
    from runner.plans.plan_file import plan_yaml
    from runner.runs.create import create_run
    from runner.runs.folder import RunFolder

    loaded = load_job(str(make_job(case, work)), case.settings())
    plan = make_plan(loaded, gather(loaded), "train")
    folder: RunFolder = create_run(work / "runs", plan.job, plan.short_hash, "train", render(plan))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (folder.path / "out.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(folder.path / "launch.sh")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        root = psutil.Process(process.pid)

        def members() -> list[psutil.Process]:
            try:
                return [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return []

        sampler, schedule = HostSampler(members), Schedule(time.monotonic())
        began, peak, at = time.monotonic(), 0, {}
        series: list[tuple[float, int]] = []
        try:
            while process.poll() is None:
                now = time.monotonic()
                if now - began > LIMIT_SECONDS:
                    return {"case": case.name, "error": f"over {LIMIT_SECONDS} s"}
                own = sampler.sample().own_bytes or 0
                series.append((round(time.time(), 2), own >> 20))
                if own > peak:
                    peak = own
                    at = {"phase": _phase(folder), "processes": [_parts(one) for one in members()]}
                time.sleep(schedule.wait_seconds(time.monotonic(), 0.1))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        tail = (folder.path / "out.log").read_text(errors="replace").strip().splitlines()[-3:]
        return {"case": case.name, "error": tail}
    return {
        "case": case.name,
        "measured_bytes": peak,
        "at": at,
        "seconds": round(time.monotonic() - began, 1),
        "plan": plan_yaml(plan),
        "series": series[::3],
        "phases": _phases(folder),
    }


def _phase(folder: Any) -> str:
    try:
        return str(json.loads(folder.engine_status(0).read_text())["phase"])
    except (OSError, ValueError, KeyError):
        return "starting"


def _phases(folder: Any) -> list[float]:
    try:
        lines = folder.metrics.read_text().splitlines()
        return [json.loads(line)["time_unix_seconds"] for line in lines]
    except (OSError, ValueError, KeyError):
        return []


def _parts(process: Any) -> dict[str, int]:
    """MiB of a process by kind: what its pages hold, and how they are shared."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        shown = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return {}
    out = {}
    for line in text.splitlines()[1:]:
        name, size = line.split()[:2]
        if name[:-1] in ("Pss", "Pss_Anon", "Pss_File", "Pss_Shmem", "AnonHugePages"):
            out[name[:-1]] = int(size) // 1024
    for line in shown.splitlines():
        if line.startswith(("RssAnon", "RssFile", "RssShmem")):
            out[line.split(":")[0]] = int(line.split()[1]) // 1024
    return out


def predict(record: dict[str, Any], case: Case, work: Path) -> dict[str, Any]:
    """The prediction of a measured plan, of no correction: what every command shows of it."""
    from runner.common.packages import package_version
    from runner.engines.render import read_plan
    from runner.engines.sft.inside.memory.predict import predict as predict_plan
    from runner.engines.sft.memory.ask import PACKAGES, Batch

    path = work / "plan.yaml"
    path.write_text(record["plan"])
    versions = {name: package_version(name) for name in PACKAGES}
    batch = Batch(case.tokens, 0, "every row is cut to it")
    return predict_plan(read_plan(path), [batch], versions).model_dump(mode="json")


def table(records: dict[str, dict[str, Any]], work: Path) -> tuple[list[str], bool]:
    """The table in Markdown, and whether the goals are met."""
    lines = [
        "| configuration | measured MiB | predicted MiB | error | interval MiB | width | inside |",
        "|---|---|---|---|---|---|---|",
    ]
    errors, inside, widths, failed = [], [], [], 0
    for case in CASES:
        record = records.get(case.name)
        if record is None:
            continue
        if "error" in record:
            lines.append(f"| {case.name} | FAILED: {record['error']} | | | | | |")
            failed += 1
            continue
        found = predict(record, case, work)
        one = max(found["trainings"], key=lambda each: each["process_bytes"])
        measured, predicted = record["measured_bytes"], one["process_bytes"]
        low, high = one["low_bytes"], one["high_bytes"]
        errors.append(predicted / measured - 1)
        inside.append(low <= measured <= high)
        widths.append((high - low) / predicted)
        lines.append(
            f"| {case.name}{' *' if case.held_out else ''} | {measured / MIB:.0f} | "
            f"{predicted / MIB:.0f} | {errors[-1]:+.1%} | {low / MIB:.0f} to {high / MIB:.0f} | "
            f"{widths[-1]:.0%} | {'yes' if inside[-1] else 'NO'} |"
        )
    if not errors:
        return lines, False
    share, middle = sum(inside) / len(inside), median(abs(one) for one in errors)
    lines += [
        "",
        f"{len(errors)} configurations, {sum(inside)} of the peaks ({share:.1%}) inside their "
        f"interval; error: median {middle:.1%}, largest {max(map(abs, errors)):.1%}; width of the "
        f"interval, of the prediction: median {median(widths):.0%}, widest {max(widths):.0%}.",
    ]
    return lines, not failed and share >= GOALS["inside"] and middle <= GOALS["median"]


def main() -> int:
    """0 where every run passed and the goals are met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--part", default="1/1", help="this part of so many, such as 2/3")
    parser.add_argument("--only", default="", help="cases that have this text in their name")
    parser.add_argument("--make", help="make this model, and nothing else")
    parser.add_argument("--one", help="run this case alone, here; its record goes to stdout")
    parser.add_argument("--no-table", action="store_true", help="measure, and predict nothing")
    parser.add_argument("--table", type=Path, help="also write the table here")
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if given.make:
        make_model(work / "models" / given.make, MODELS[given.make])
        return 0
    if given.one:
        case = next(one for one in CASES if one.name == given.one)
        print(json.dumps(measure(case, work)))
        return 0
    path = work / "results.jsonl"
    done: dict[str, dict[str, Any]] = {}
    if path.is_file():
        done = {one["case"]: one for one in map(json.loads, path.read_text().splitlines())}
    part, parts = (int(text) for text in given.part.split("/"))
    chosen = [case for case in CASES if given.only in case.name][part - 1 :: parts]
    for case in chosen:
        if "measured_bytes" in done.get(case.name, {}):
            continue
        try:
            said = subprocess.run(
                [sys.executable, __file__, str(work), "--one", case.name],
                capture_output=True,
                text=True,
                timeout=LIMIT_SECONDS + 60,
            )
            record = json.loads(said.stdout.splitlines()[-1])
        except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
            record = {"case": case.name, "error": [str(error)[:200]]}
            if not isinstance(error, subprocess.TimeoutExpired):
                record["error"] = said.stderr.strip().splitlines()[-3:]
        with path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        done[case.name] = record
        told = record.get("error") or f"{record['measured_bytes'] / MIB:.0f} MiB"
        print(f"{case.name}: {told}", file=sys.stderr, flush=True)
    if given.no_table:
        return 0
    lines, met = table(done, work)
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
