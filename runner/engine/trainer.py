"""TRL's SFTTrainer with what it lacks: whole checkpoints, requests at step boundaries, records.

Imports torch, transformers, trl. The training mathematics is the libraries' own.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from runner import checkpoints, durable
from runner.engine.control import Control, Stopped
from runner.engine.watch import check_loss
from runner.folder import RunFolder
from runner.plan import Plan

METRICS_SCHEMA_VERSION = 1
FULL_BYTES = 1 << 20  # a disk with less free is full


class RunTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints appear whole or not at all."""

    longest_first = False
    keep_checkpoints: int | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.longest_first:
            return super()._get_train_sampler(train_dataset)
        # rows were put in order of length before; a smoke meets the worst batch first
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        staging = final.parent / f".staging-{self.state.global_step}"
        first = self.args.process_index == 0
        if first:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        _barrier()
        output_dir, self.args.output_dir = self.args.output_dir, str(staging)
        try:
            # not TRL's own: it would write a model card beside every checkpoint
            Trainer._save_checkpoint(self, model, trial)
            _barrier()  # every rank's random state and shard is written
            if first:
                checkpoints.seal(staging / final.name)
                checkpoints.publish(staging / final.name, final)
        except Exception as error:
            free = shutil.disk_usage(final.parent).free
            shutil.rmtree(staging, ignore_errors=True)  # and with it the room to say why
            if free < FULL_BYTES:  # torch and safetensors each say it in their own words, or not
                raise OSError(
                    errno.ENOSPC,
                    f"No space left on device while saving {final.name}; earlier checkpoints are "
                    "untouched",
                ) from error
            raise
        finally:
            self.args.output_dir = output_dir
        if first:
            shutil.rmtree(staging, ignore_errors=True)
            for old in self._too_many(final.parent):
                shutil.rmtree(old)
        _barrier()

    def _too_many(self, folder: Path) -> list[Path]:
        kept = self.keep_checkpoints
        return checkpoints.listed(folder)[:-kept] if kept else []


class Requests(TrainerCallback):
    """Saves and stops when Control was asked to, at a step boundary, on all ranks alike."""

    def __init__(self, control: Control) -> None:
        self._requests = control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        save, stop = _agreed(self._requests.checkpoint_requested, self._requests.stop_requested)
        if save or stop:
            control.should_save = True
            self._requests.checkpoint_requested = False
        if stop:
            self._requests.stop_requested = True
            control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if torch.distributed.is_initialized():
            return  # ranks evaluate in step; they all leave at the next training step
        self._requests.stop_if_asked()
        if self._requests.stop_requested and state.global_step >= state.max_steps:
            raise Stopped


class Records(TrainerCallback):
    """metrics.jsonl, one line a logging step, and the end of a run whose loss is impossible."""

    def __init__(self, plan: Plan, folder: RunFolder, resumed_step: int | None) -> None:
        self._plan = plan
        self._folder = folder
        self._writer: durable.JsonlWriter | None = None
        self._resumed_step = resumed_step
        self._last_time = time.monotonic()
        self._last_tokens = 0.0
        self._process = psutil.Process()
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.eval_loss: float | None = None
        self.tokens = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._last_time = time.monotonic()
        if state.is_world_process_zero:
            if self._resumed_step is not None:
                keep_metrics_until(self._folder, self._resumed_step)
            self._writer = durable.JsonlWriter(self._folder.metrics)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            self.eval_loss = float(logs["eval_loss"])
            self._write(
                {
                    "step": state.global_step,
                    "epoch": logs.get("epoch"),
                    "eval_loss": _finite(self.eval_loss),
                }
            )
        if "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), logs.get("grad_norm")
        norm = None if norm is None else float(norm)
        now, tokens = time.monotonic(), float(logs.get("num_tokens", 0.0))
        rate = (tokens - self._last_tokens) / max(now - self._last_time, 1e-9)
        self._last_time, self._last_tokens, self.tokens = now, tokens, tokens
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.last_loss = loss
        memory, source = self._memory()
        self._write(
            {
                "step": state.global_step,
                "epoch": logs.get("epoch"),
                "loss": _finite(loss),
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": _finite(norm),
                "tokens": int(tokens),
                "tokens_per_second": round(rate, 1),
                "memory_bytes": memory,
                "memory_source": source,
                "time_unix_seconds": round(time.time(), 3),
            }
        )
        check_loss(
            state.global_step,
            loss,
            norm,
            self._plan.training.loss_ceiling,
            scaled=self._plan.precision == "fp16",
        )

    def _write(self, record: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write({"schema_version": METRICS_SCHEMA_VERSION, **record})

    def _memory(self) -> tuple[int, str]:
        if self._plan.launch.device == "cuda":
            peak = int(torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()
            return peak, "torch_max_reserved"
        return int(self._process.memory_info().rss), "process_rss"


def keep_metrics_until(folder: RunFolder, step: int) -> None:
    """Before a resume: drop the lines of steps that are trained again; a copy stays in logs/."""
    records = list(durable.read_jsonl(folder.metrics))
    kept = [record for record in records if int(record.get("step", 0)) <= step]
    if len(kept) == len(records):
        return
    number = 1 + len(list(folder.logs.glob("metrics-before-resume-*.jsonl")))
    copy = folder.logs / f"metrics-before-resume-{number}.jsonl"
    for path, lines in ((copy, records), (folder.metrics, kept)):
        durable.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _finite(value: float | None) -> float | None:
    """NaN and infinity have no JSON; null stands for them."""
    return value if value is not None and value - value == 0 else None


def _agreed(save: bool, stop: bool) -> tuple[bool, bool]:
    """Requests reach ranks at different moments; what one rank was asked, all do."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return save, stop
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor([int(save), int(stop)], device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags[0].item()), bool(flags[1].item())


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def world_size() -> int:
    """Training processes of this run, from the launcher's environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))
