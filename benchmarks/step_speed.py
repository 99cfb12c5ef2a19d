"""Tokens a second and MFU of one training step: runner's own engine, or plain TRL beside it.

    python benchmarks/step_speed.py WORK --who ours|trl --model DIR --rows FILE --out FILE.jsonl
                                    [--shape 2x4096] [--steps 14] [--device cuda]

LoRA r 16 on every linear layer, dropout 0, bf16, no recomputation, full rows: both are given the
same weights and rows of the same length. A step is timed from one training_step to the next (the
device synchronised), so it holds the optimizer, the data loader and what the trainer does besides.
The last step but one is profiled, and left out of the figures; its record names the kernels that
computed attention, and the ones that took longest. One line of JSON, written before the result is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

AS_LAUNCH_SH = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "GOMP_SPINCOUNT": "20000",  # read as torch is imported
}
"""What launch.sh sets for a run, here for both."""
WARM_UP_STEPS = 4  # the allocator's growth, the plans of cuBLAS and cuDNN, Triton's compilations
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}
"""bf16 FLOP/s without sparsity by a part of the card's name; NVIDIA's data sheets, SXM parts."""
ATTENTION = ("flash", "fmha", "attention", "cudnn_generated", "sdpa", "mem_eff", "softmax")
"""What kernels that compute attention have in their names (softmax: the math path's)."""


def lora_parameters(config: Any, rank: int) -> int:
    """Parameters of LoRA on the seven linear layers of each block of a Llama-shaped model."""
    hidden, middle, key_value = _widths(config)
    pairs = [(hidden, hidden)] * 2 + [(hidden, key_value)] * 2
    pairs += [(hidden, middle)] * 2 + [(middle, hidden)]
    return int(config.num_hidden_layers * rank * sum(one + other for one, other in pairs))


def lora_flops_per_token(config: Any, tokens: int, rank: int) -> float:
    """FLOPs of a LoRA training step for each token of rows of `tokens`, attention causal.

    NeMo AutoModel's way: those of training everything (6 for each weight of a linear layer and the
    head; attention 12 x hidden x tokens x layers, halved as it is causal), times
    (2 + lora/frozen) / 3, as no gradient of a frozen weight is computed. Qwen2.5-7B, r 16, 4096:
    30.0 GFLOP, so that 14,110 tokens/s are 423 TFLOP/s, as they print.
    """
    hidden, middle, key_value = _widths(config)
    block = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * middle
    frozen = config.num_hidden_layers * block + hidden * config.vocab_size
    attention = 6 * tokens * hidden * config.num_hidden_layers
    share = lora_parameters(config, rank) / frozen
    return float((6 * frozen + attention) * (2 + share) / 3)


def _widths(config: Any) -> tuple[int, int, int]:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.hidden_size, config.intermediate_size, config.num_key_value_heads * size


def peak_flops(name: str) -> float | None:
    """The card's bf16 rate in FLOP/s; None for one that PEAKS lacks."""
    return next((rate for part, rate in PEAKS.items() if part in name), None)


class Stopwatch:
    """Times the training steps of whichever Trainer runs in this process, and profiles one."""

    def __init__(self, steps: int, device: str) -> None:
        self._profiled_step, self._device = steps - 2, device
        self._starts: list[float] = []
        self.kernels: list[tuple[str, float]] = []
        """Of the profiled step: name and milliseconds on the device, the longest first."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Wrap transformers' training_step while this lasts."""
        from transformers import Trainer

        original = Trainer.training_step
        watch = self

        def training_step(self: Any, *arguments: Any, **more: Any) -> Any:
            watch._synchronise()
            number = len(watch._starts)
            watch._starts.append(time.perf_counter())
            if number != watch._profiled_step:
                return original(self, *arguments, **more)
            with watch._profile():
                return original(self, *arguments, **more)

        Trainer.training_step = training_step
        try:
            yield
        finally:
            Trainer.training_step = original

    def _synchronise(self) -> None:
        import torch

        if self._device == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def _profile(self) -> Iterator[None]:
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self._device == "cuda"
        with profile(
            activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
        ) as seen:
            yield
            self._synchronise()
        figure = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        found = [(each.key, getattr(each, figure) / 1000) for each in seen.key_averages()]
        self.kernels = sorted(found, key=lambda pair: -pair[1])

    @property
    def step_seconds(self) -> list[float]:
        """Of each step after the warm-up that was neither profiled nor the last."""
        pairs = zip(self._starts, self._starts[1:], strict=False)
        lasted = [after - before for before, after in pairs]
        return lasted[WARM_UP_STEPS : self._profiled_step]


def attention_kernels(kernels: list[tuple[str, float]]) -> list[list[Any]]:
    """[name, ms] of those that computed attention, the longest first."""
    return [
        [name[:160], round(ms, 2)]
        for name, ms in kernels
        if any(word in name.lower() for word in ATTENTION)
    ][:6]


def settings(model: Path, rows: Path, shape: tuple[int, int], steps: int, device: str) -> list[str]:
    """demo-identity as `--set`s: this step and nothing beside it."""
    return [
        f"model={model}",
        f"data.train={rows}",
        "data.format=alpaca",
        "data.split=null",
        "method=lora",
        "lora={r: 16, lora_alpha: 32, lora_dropout: 0.0, target_modules: all-linear}",
        "training.precision=bf16",
        "training.gradient_checkpointing=false",
        f"training.max_length={shape[1]}",
        f"training.per_device_train_batch_size={shape[0]}",
        "training.gradient_accumulation_steps=1",
        f"training.max_steps={steps}",
        "training.logging_steps=1",
        "training.stages=[]",
        "training.eval_steps=null",
        "training.save_steps=null",
        "budget={}",
        f"launch.device={device}",
        "launch.on=local",
        "tracking.report_to=[]",
    ]


def train_ours(work: Path, sets: list[str]) -> None:
    """The engine on a plan that `runner render` made, in this process."""
    command = [sys.executable, "-m", "runner", "render", "demo-identity", "--json"]
    command += ["--file", "plan.yaml", *(part for text in sets for part in ("--set", text))]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"runner render: {made.stderr.strip()[-800:]}")
    from runner.engines.render import read_plan
    from runner.engines.sft.inside.control import Control
    from runner.engines.sft.inside.train.train import train
    from runner.runs.folder import RunFolder

    folder = RunFolder(work / "ours")
    for inner in (folder.path, folder.logs, folder.checkpoints, folder.engine):
        inner.mkdir(parents=True, exist_ok=True)
    folder.plan.write_text(json.loads(made.stdout)["files"]["plan.yaml"])
    code = train(read_plan(folder.plan), folder, Control(folder, 0), resume=False)
    if code:
        raise RuntimeError(f"the engine ended with {code}")


def train_trl(
    work: Path, model: Path, rows: Path, shape: tuple[int, int], steps: int, device: str
) -> None:
    """TRL's SFTTrainer as its documentation has it: no callback, no choice of kernels."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    texts = [json.loads(line)["output"] for line in rows.read_text().splitlines()]
    ids = [each[: shape[1]] for each in tokenizer(texts)["input_ids"]]
    short = min(len(each) for each in ids)
    if short < shape[1]:
        raise RuntimeError(f"a row has {short} tokens, not {shape[1]}")
    config = SFTConfig(
        output_dir=str(work / "trl"),
        max_steps=steps,
        per_device_train_batch_size=shape[0],
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_length=shape[1],
        bf16=True,
        use_cpu=device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16),
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    ).train()


def figures(
    watch: Stopwatch, model: Path, shape: tuple[int, int], device: str, attention: str
) -> dict[str, Any]:
    """The record: speed, MFU, memory, kernels."""
    import torch
    from transformers import AutoConfig

    per_token = lora_flops_per_token(AutoConfig.from_pretrained(str(model)), shape[1], 16)
    seconds = median(watch.step_seconds)
    rate = shape[0] * shape[1] / seconds
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    return {
        "step_ms": round(1000 * seconds, 2),
        "step_ms_all": [round(1000 * each, 1) for each in watch.step_seconds],
        "tokens_per_second": round(rate, 1),
        "gflop_per_token": round(per_token / 1e9, 6),
        "tflops": round(rate * per_token / 1e12, 3),
        "mfu": round(rate * per_token / peak, 4) if peak else None,
        "peak_tflops": peak / 1e12 if peak else None,
        "attention_kernels": attention_kernels(watch.kernels),
        "sdp": attention,
        "cpu_threads": torch.get_num_threads(),
        "longest_kernels": [[name[:100], round(ms, 2)] for name, ms in watch.kernels[:12]],
        "torch_peak_reserved_bytes": torch.cuda.max_memory_reserved() if device == "cuda" else None,
    }


def enabled_sdp() -> str:
    """The attention backends that torch may choose from, as this process left them."""
    import torch

    names = ("flash", "mem_efficient", "cudnn", "math")
    return " ".join(n for n in names if getattr(torch.backends.cuda, f"{n}_sdp_enabled")())


def main() -> int:
    """0 with a record of the step; 1 with one that says why there is none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--who", choices=("ours", "trl"), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--shape", default="2x4096", help="rows x tokens of a batch")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; one is added")
    given = parser.parse_args()
    rows, tokens = (int(text) for text in given.shape.split("x"))
    for name, value in AS_LAUNCH_SH.items():
        os.environ.setdefault(name, value)
    watch = Stopwatch(given.steps, given.device)
    record: dict[str, Any] = {"who": given.who, "shape": given.shape, "steps": given.steps}
    code = 0
    try:
        with watch.watch():
            if given.who == "ours":
                sets = settings(given.model, given.rows, (rows, tokens), given.steps, given.device)
                train_ours(given.work, sets)
            else:
                train_trl(
                    given.work, given.model, given.rows, (rows, tokens), given.steps, given.device
                )
        record |= figures(watch, given.model, (rows, tokens), given.device, enabled_sdp())
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        record["error"] = f"{type(error).__name__}: {said[-1][:400]}"
        record["out_of_memory"] = type(error).__name__ == "OutOfMemoryError"
        code = 1
    with given.out.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # library threads can hold the device; the record is written
