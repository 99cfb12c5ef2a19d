"""Which layers of a training recompute their activations. Imports transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runner.engines.sft.inside.model.saving import apply_checkpointing
from runner.jobs.training import TrainingSettings


class ActivationCheckpointingCallback(TrainerCallback):
    """Leaves it to the layers that the settings name; transformers has it switched on in all."""

    def __init__(self, training: TrainingSettings) -> None:
        self._settings = training

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        if self._settings.gradient_checkpointing:
            apply_checkpointing(model, self._settings)
