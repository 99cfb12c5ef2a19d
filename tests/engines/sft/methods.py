"""Three real steps of each training method on the 260K-parameter model, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.engines.sft.job import SftJob
from runner.engines.sft.plan import SftPlan
from runner.plans.plan_file import plan_yaml
from runner.runs.folder import RunFolder

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4}},
    "lora on two modules": {"lora": {"r": 4, "target_modules": ["q_proj", "self_attn.v_proj"]}},
    "rslora": {"lora": {"r": 4, "use_rslora": True}},
    "dora": {"lora": {"r": 4, "use_dora": True}},
    "nf4": {"method": "qlora", "lora": {"r": 4}},
    "nf4 dora": {"method": "qlora", "lora": {"r": 4, "use_dora": True}},
    "fp4": {
        "method": "qlora",
        "lora": {"r": 4},
        "quantization": {"quant_type": "fp4", "double_quant": False},
    },
    "int8": {"method": "qlora", "lora": {"r": 4}, "quantization": {"bits": 8}},
    "prefix": {"method": "prefix", "prefix": {"num_virtual_tokens": 5}},
    "projected prefix": {
        "method": "prefix",
        "prefix": {"num_virtual_tokens": 5, "prefix_projection": True},
    },
    "full": {"method": "full"},
}


@dataclass(frozen=True)
class Trained:
    """A training that ended, its result saved, and the trainer that did it."""

    plan: SftPlan
    folder: RunFolder
    trainer: Any
    tokenizer: Any
    start: Any
    saved: dict[str, Any]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.trainer.state.log_history if "loss" in line]


def plan_of(model: Path, rows: Path, **settings: Any) -> SftPlan:
    """A plan of three steps on the CPU."""
    precision = settings.pop("precision", "fp32")
    job = SftJob.model_validate(
        {
            "model": str(model),
            "data": {"train": str(rows), "format": "conversations"},
            "training": {
                "max_steps": 3,
                "per_device_train_batch_size": 2,
                "max_length": 64,
                "learning_rate": 5e-3,
                "logging_steps": 1,
                "save_steps": 3,
                **settings.pop("training", {}),
            },
            **settings,
        }
    )
    source = {"kind": "file", "path": str(rows), "size_bytes": rows.stat().st_size}
    return SftPlan.model_validate(
        {
            "job": "tiny",
            "description": "",
            "variant": "train",
            "engine": "sft",
            "model": {"kind": "folder", "id": str(model), "folder": str(model)},
            "trust_remote_code": False,
            "method": job.method,
            "lora": job.lora.model_dump(),
            "quantization": job.quantization.model_dump(),
            "prefix": job.prefix.model_dump(),
            "trains": ["adapter"],
            "data": job.data.model_dump(),
            "rows": {"train": source},
            "training": job.training.model_dump(),
            "evaluation": job.evaluation.model_dump(),
            "tracking": job.tracking.model_dump(),
            "precision": precision,
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


def make_trainer(plan: SftPlan, folder: RunFolder) -> tuple[Any, Any]:
    """The engine's trainer for a plan, on four rows, and the tokenizer."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig

    from runner.engines.sft.inside.model.adapter import trainable_setup
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer
    from runner.engines.sft.inside.model.weights import load_model
    from runner.engines.sft.inside.train.trainer import RunTrainer

    set_seed(plan.training.seed)
    tokenizer, _ = load_tokenizer(plan)
    ids = [
        tokenizer(text)["input_ids"]
        for text in ("Once upon a time", "The cat sat on the mat", "Lily was happy", "A red ball")
    ]
    model = load_model(plan)
    training = plan.training
    trainer = RunTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder.checkpoints),
            max_steps=training.max_steps or -1,
            per_device_train_batch_size=training.per_device_train_batch_size,
            learning_rate=training.learning_rate,
            activation_checkpointing=training.gradient_checkpointing,
            save_steps=training.save_steps or 500,
            bf16=plan.precision == "bf16",
            seed=training.seed,
            logging_steps=1,
            max_length=None,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        processing_class=tokenizer,
        peft_config=trainable_setup(model, plan),
    )
    return trainer, tokenizer


def train(plan: SftPlan, path: Path) -> Trained:
    """Train a plan in `path` and save its result."""
    from runner.engines.sft.inside.train.result import ready_to_train, save_result

    folder = RunFolder(path / "tiny" / "20260101-000000-0000000")
    folder.checkpoints.mkdir(parents=True)
    durable.write_text(folder.plan, plan_yaml(plan))
    trainer, tokenizer = make_trainer(plan, folder)
    start = ready_to_train(trainer.model, plan)
    trainer.train()
    saved = save_result(trainer, tokenizer, plan, folder, start=start, first=True)
    return Trained(plan, folder, trainer, tokenizer, start, saved)
