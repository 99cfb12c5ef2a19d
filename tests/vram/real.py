"""A small model with random weights: its plan, and real optimizer steps of it by our trainer.

What torch really allocates is counted by torch's profiler, which knows nothing of the prediction.
"""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.engines.sft.plan import SftPlan
from tests.engines.sft import methods
from tests.engines.sft.tiny import run_folder

VOCABULARY, TOKENS, ROWS = 4096, 128, 2
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
QWEN = {
    **LLAMA,
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder of a config alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> Path:
    """A tokenizer of so many words: t0, t1, ..., and those of the plain chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    last = ("User", "Assistant", ":", "<pad>", "<eos>")
    names = [*(f"t{number}" for number in range(vocabulary - len(last))), *last]
    words = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    return folder


def plan_of(folder: Path, config: dict[str, Any] = LLAMA, **settings: Any) -> SftPlan:
    """A CPU plan in fp32 of 2 rows of 128 tokens, LoRA of rank 8, and these settings."""
    model = write_model(folder / config["model_type"], config)
    rows = folder / "rows.jsonl"
    rows.touch()
    training = {
        "per_device_train_batch_size": ROWS,
        "max_length": TOKENS,
        "max_steps": 2,
        "save_steps": None,
        **settings.pop("training", {}),
    }
    settings.setdefault("lora", {"r": 8})
    return methods.plan_of(model, rows, training=training, tracking={"report_to": []}, **settings)


def make_trainer(
    plan: SftPlan, path: Path, *, tokens: int, rows: int, lengths: int = 1, **more: Any
) -> Any:
    """The engine's trainer of a plan on `rows` random rows, ready to train.

    Every second one has `lengths` tokens less than `tokens`, so that a batch of two has a mask.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

    from runner.engines.sft.inside.model.adapter import trainable_setup
    from runner.engines.sft.inside.model.weights import precision_dtype
    from runner.engines.sft.inside.train.arguments import training_arguments
    from runner.engines.sft.inside.train.result import ready_to_train
    from runner.engines.sft.inside.train.trainer import RunTrainer

    folder = run_folder(path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"t0": 0, "<pad>": 1}, unk_token="t0")),
        pad_token="<pad>",
        eos_token="<pad>",
    )
    set_seed(plan.training.seed)
    config = AutoConfig.from_pretrained(plan.model.folder)
    whole = plan.method == "full"  # as engine.model.load_model has it
    dtype = precision_dtype("fp32" if whole else plan.precision)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    entries = config.vocab_size
    ids = [
        [
            (997 * row + 31 * place + row * place) % entries
            for place in range(tokens - lengths * (row % 2))
        ]
        for row in range(rows)
    ]
    trainer = RunTrainer(
        model=model,
        args=training_arguments(plan, folder, has_eval=False),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        processing_class=tokenizer,
        peft_config=trainable_setup(model, plan),
        **more,
    )
    trainer.prepare_run(plan.model_copy(update={"variant": "smoke"}), folder)  # rows in order
    ready_to_train(trainer.model, plan)
    return trainer


@dataclass(frozen=True)
class Measured:
    """The second optimizer step, as torch's CPU allocator saw it. Bytes."""

    peak: int
    before: int
    """Alive when the step began."""


def measure(plan: SftPlan, path: Path, *, tokens: int = TOKENS) -> Measured:
    """Train two real steps; the most that tensors held in the second one."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function
    from transformers import TrainerCallback

    from runner.engines.sft.inside.model.saving import loss_chunks

    torch.set_num_threads(plan.launch.threads_per_process)

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.mark = record_function(f"step {state.global_step + 1}")
            self.mark.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.mark.__exit__(None, None, None)

    rows = 2 * plan.training.per_device_train_batch_size * plan.training.gradient_accumulation_steps
    gc.collect()
    # profiled from before the weights are made: nothing is alive that is not counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        trainer = make_trainer(plan, path, tokens=tokens, rows=rows, callbacks=[Marks()])
        with loss_chunks(plan.training):
            trainer.train()
    events = found.profiler.kineto_results.events()
    step = next(one for one in events if one.name() == "step 2")
    start, end = step.start_ns(), step.end_ns()
    changes = sorted(
        (
            (one.start_ns(), number, one.nbytes())
            for number, one in enumerate(events)
            if one.name() == "[memory]"
        ),
    )
    total, before, peak = 0, 0, 0
    for when, _, size in changes:
        total += size
        if when < start:
            before = total
        elif when <= end:
            peak = max(peak, total)
    return Measured(max(peak, before), before)
