"""Call the toolkit's own train(), with what it lacks: a stop that saves, an eye on the loss.

    python train.py --attention sdpa --base FOLDER [--cpu] -- THE TOOLKIT'S FLAGS

What is added to the toolkit, all of it from outside:
- SIGTERM saves a checkpoint of the last whole step and ends with 143; in the pretraining, whose
  checkpoints can't be resumed from, it ends at once. SIGUSR1 saves at the next step and trains on.
- Python, numpy and torch are seeded, since the projector is made before transformers seeds; 1024,
  as the challenge's copy of the toolkit does. Without it two runs begin with other weights.
- An absurd loss ends the training as soon as it is logged (watch_loss.py); every loss goes into
  metrics.jsonl (records.py), with the learning rate that its step was made with.
- A row that can't be read ends the training; upstream takes another row instead, without a word.
- What it raises is recorded as the reason of the run's end (ending.py), and goes on to the log.
- --cpu: the one `.to("cuda")` of the toolkit's own goes to the CPU. For trials only.

Imports the standard library; torch, transformers and the toolkit inside functions.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import TrainerControl, TrainerState, TrainingArguments

if __package__:
    from .ending import failure_of
    from .records import RUN, Metrics, fail, tell_stage
    from .watch_loss import absurd_loss
    from .whole import split_command
else:  # in a run folder the scripts lie beside each other
    from ending import failure_of  # type: ignore[import-not-found, no-redef]
    from records import (  # type: ignore[import-not-found, no-redef]
        RUN,
        Metrics,
        fail,
        tell_stage,
    )
    from watch_loss import absurd_loss  # type: ignore[import-not-found, no-redef]
    from whole import split_command  # type: ignore[import-not-found, no-redef]

EXIT_STOPPED = 128 + signal.SIGTERM
SEED = 1024


class Requests:
    """What signals have asked for; read at step boundaries."""

    def __init__(self) -> None:
        self.stop = False
        self.save = False
        self.training = False

    def on_term(self, number: int, frame: object) -> None:
        if not self.training:  # nothing is lost while weights load
            raise SystemExit(EXIT_STOPPED)
        self.stop = True

    def on_usr1(self, number: int, frame: object) -> None:
        self.save = True


def single_process_environment(environment: dict[str, str]) -> dict[str, str]:
    """What a launcher would have set for one process; {} where one did."""
    if "RANK" in environment:
        return {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def callback(requests: Requests, vocabulary: int, resumable: bool, phase: str, run: Path) -> type:
    """The trainer callback that watches losses, records them in `run` and obeys `requests`."""
    import torch
    from transformers import TrainerCallback

    metrics = Metrics(run / "metrics.jsonl", phase)

    def asked_on_any_rank(flag: bool) -> bool:
        distributed = torch.distributed
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return flag
        device = "cuda" if torch.cuda.is_available() else "cpu"
        shared = torch.tensor([int(flag)], device=device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return bool(shared.item())

    class Watch(TrainerCallback):
        rate: float | None = None  # that the step is made with

        def on_train_begin(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **rest: object,
        ) -> None:
            requests.training = True
            if state.is_world_process_zero:
                metrics.begin(state.global_step)
                steps = int(state.max_steps)
                tell_stage(run, stage=phase, saves=resumable, trainings={phase: steps})
            if state.global_step:
                print(f"train: resumes from step {state.global_step}", flush=True)

        def on_step_begin(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            lr_scheduler: LRScheduler | None = None,
            **rest: object,
        ) -> None:
            # transformers logs a step after the scheduler's, with the next one's rate
            self.rate = None if lr_scheduler is None else float(lr_scheduler.get_last_lr()[0])

        def on_substep_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **rest: object,
        ) -> TrainerControl:
            # A step may be 128 batches, longer than a stop's grace. What this one summed up is
            # dropped; it is done again. Ranks can't agree between steps, so several wait.
            if requests.stop and args.world_size == 1:
                if not resumable:
                    raise SystemExit(EXIT_STOPPED)
                saved = Path(args.output_dir, f"checkpoint-{state.global_step}").exists()
                control.should_save = state.global_step > 0 and not saved
                control.should_training_stop = True
            return control

        def on_step_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **rest: object,
        ) -> TrainerControl:
            if asked_on_any_rank(requests.stop):
                requests.stop = True
                control.should_save = resumable
                control.should_training_stop = True
            elif resumable and asked_on_any_rank(requests.save):
                requests.save = False
                control.should_save = True
            return control

        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            logs: dict[str, float] | None = None,
            **rest: object,
        ) -> None:
            entry = state.log_history[-1] if state.log_history else {}
            # a tensor (the gradient norm, of newer DeepSpeeds) can't go into trainer_state.json
            entry.update(
                {key: value.item() for key, value in entry.items() if hasattr(value, "item")}
            )
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            if state.is_world_process_zero:
                peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
                metrics.add(
                    state.global_step,
                    float(loss),
                    learning_rate=self.rate,
                    memory_bytes=peak,
                    memory_source="torch_max_reserved" if peak else None,
                )
            reason = absurd_loss(float(loss), vocabulary)
            if reason is not None:
                told = f"{phase}, step {state.global_step}: {reason}"
                fail("non_finite_loss", told, run)
                raise SystemExit(f"train: step {state.global_step}: {reason}; the run failed")

        def on_train_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **rest: object,
        ) -> None:
            if requests.stop:  # before upstream writes its results as if this were the end
                saved = "a checkpoint is saved" if resumable else "nothing is kept to resume from"
                print(f"train: stopped at step {state.global_step}; {saved}", flush=True)
                raise SystemExit(EXIT_STOPPED)

    return Watch


class _LazyRows(Protocol):
    """The toolkit's dataset: its rows as they were read, and a sample made of one."""

    list_data_dict: list[dict[str, object]]

    def _sample_item(self, number: int) -> object: ...

    def __getitem__(self, number: int) -> object: ...


def strict_rows(dataset: type[_LazyRows]) -> None:
    """Make a dataset class raise for a row that can't be read, naming it (trap 13)."""

    def take(self: _LazyRows, number: int) -> object:
        try:
            return self._sample_item(number)
        except Exception as error:
            row = self.list_data_dict[number]
            raise RuntimeError(
                f"row {number}, id {row.get('id')!r}, image {row.get('image')!r}: {error}"
            ) from error

    dataset.__getitem__ = take  # type: ignore[method-assign]


def seed(number: int) -> None:
    """Seed what draws random numbers before transformers' trainer does so by itself."""
    import numpy
    import torch

    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)  # the GPUs' generators too


def cuda_to_cpu() -> None:
    """Let `module.to(device="cuda")` mean the CPU: mgm_arch.py has one that can't be avoided."""
    import torch

    original = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return original(self, *args, **kwargs)

    torch.nn.Module.to = to


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--attention", choices=["sdpa", "flash_attention_2"], required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    options, flags = split_command(sys.argv[1:])
    given = parser.parse_args(options)

    requests = Requests()
    signal.signal(signal.SIGTERM, requests.on_term)
    signal.signal(signal.SIGUSR1, requests.on_usr1)

    # this folder's scripts must not stand before packages of the same names
    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    vocabulary = int(json.loads((given.base / "config.json").read_text("utf-8"))["vocab_size"])
    deepspeed = "--deepspeed" in flags
    if deepspeed:
        os.environ.update(single_process_environment(dict(os.environ)))

    import transformers.trainer
    from mgm.train import train as toolkit  # type: ignore[import-not-found]

    if given.cpu:
        cuda_to_cpu()
    strict_rows(toolkit.LazySupervisedDataset)
    # upstream's pretraining checkpoints hold no optimizer, those without DeepSpeed no projector
    resumable = "--lora_enable" in flags and deepspeed
    phase = "finetune" if "--lora_enable" in flags else "pretrain"
    watch = callback(requests, vocabulary, resumable, phase, RUN)
    transformers.trainer.DEFAULT_CALLBACKS.append(watch)
    seed(SEED)
    sys.argv = [str(toolkit.__file__), *flags]
    try:
        toolkit.train(attn_implementation=given.attention)
    except Exception as error:
        kind, reason = failure_of(error)
        fail(kind, f"{phase}: {reason}", RUN)
        raise


if __name__ == "__main__":
    main()
