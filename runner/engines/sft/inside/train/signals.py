"""Save or stop a training when it is asked to from outside. Imports torch, transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runner.engines.sft.inside.control import Control, Stopped


class SignalCallback(TrainerCallback):
    """Saves and stops when Control was asked to, at a step boundary, on all ranks alike.

    A single process leaves an evaluation too: RunTrainer.evaluate takes Stopped for the request
    to save where training stands, and to end.
    """

    def __init__(self, control: Control) -> None:
        self._requests = control
        self._training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._training = False

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
        if self._training:
            if self._requests.stop_requested:
                self._requests.checkpoint_requested = False  # it is saved now
                raise Stopped
            return
        self._requests.stop_if_asked()
        if self._requests.stop_requested and state.global_step >= state.max_steps:
            raise Stopped


def _agreed(save: bool, stop: bool) -> tuple[bool, bool]:
    """Requests reach ranks at different moments; what one rank was asked, all do."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return save, stop
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor([int(save), int(stop)], device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags[0].item()), bool(flags[1].item())
