"""Real trainings of a few thousand random parameters, in this process, in about a second each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.engines.sft.job import SftJob
from runner.engines.sft.plan import SftPlan
from runner.runs.folder import RunFolder


def plan_of(
    training: dict[str, Any] | None = None,
    *,
    phase: str = "",
    tracking: dict[str, Any] | None = None,
    variant: str = "train",
) -> SftPlan:
    """A plan of one CPU training, with every default of a job but these settings."""
    job = SftJob.model_validate(
        {
            "model": "someone/tiny",
            "data": {"train": "rows.jsonl", "split": {"eval": 0.1, "seed": 1}},
            "training": {
                "per_device_train_batch_size": 2,
                "max_length": 16,
                **(training or {}),
            },
            "tracking": {"report_to": [], **(tracking or {})},
        }
    )
    settings = job.training
    if settings.stages:
        total = sum(stage.max_steps for stage in settings.stages)
        settings = settings.model_copy(update={"max_steps": total})
    rows = {"kind": "file", "path": "rows.jsonl", "sha256": "0" * 64, "size_bytes": 1}
    return SftPlan.model_validate(
        {
            "job": "tiny",
            "description": "",
            "variant": variant,
            "engine": "sft",
            "model": {"kind": "hub", "id": "someone/tiny"},
            "trust_remote_code": False,
            "method": "lora",
            "lora": job.lora.model_dump(),
            "quantization": job.quantization.model_dump(),
            "prefix": job.prefix.model_dump(),
            "phase": phase,
            "trains": ["adapter"],
            "data": job.data.model_dump(),
            "rows": {"train": rows},
            "training": settings.model_dump(),
            "evaluation": job.evaluation.model_dump(),
            "tracking": job.tracking.model_dump(),
            "precision": "fp32",
            "launch": {
                "device": "cpu",
                "num_processes": 1,
                "deepspeed": "none",
                "threads_per_process": 1,
            },
            "budget": {"kind": "none"},
            "timeout_minutes": None,
            "python": "python",
        }
    )


def run_folder(path: Path) -> RunFolder:
    """An empty run folder, as `runner` makes it before a start."""
    folder = RunFolder(path)
    for inner in (folder.path, folder.logs, folder.checkpoints, folder.engine):
        inner.mkdir(parents=True, exist_ok=True)
    return folder


def make_trainer(
    plan: SftPlan,
    folder: RunFolder,
    *,
    resumed_step: int | None = None,
    step_offset: int = 0,
    trackers: Any = None,
    control: Any = None,
) -> Any:
    """A RunTrainer on a random two-layer llama and 16 random rows, ready to train."""
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    from runner.engines.sft.inside.train.arguments import training_arguments
    from runner.engines.sft.inside.train.metrics_callback import MetricsCallback
    from runner.engines.sft.inside.train.signals import SignalCallback
    from runner.engines.sft.inside.train.trainer import RunTrainer

    vocabulary = {f"t{number}": number for number in range(30)} | {"<pad>": 30, "<eos>": 31}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    set_seed(plan.training.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=30,
        )
    )
    rows = [
        {"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)}
        for ids in ([(7 * row + 3 * place) % 30 for place in range(8)] for row in range(16))
    ]
    records = MetricsCallback(
        plan, folder, resumed_step, step_offset=step_offset, trackers=trackers
    )
    callbacks = [records] if control is None else [records, SignalCallback(control)]
    trainer = RunTrainer(
        model=model,
        args=training_arguments(plan, folder, has_eval=True),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:2]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1),
        callbacks=callbacks,
    )
    trainer.prepare_run(plan, folder, step_offset=step_offset, plan_hash=plan.hash)
    trainer.records = records
    return trainer
