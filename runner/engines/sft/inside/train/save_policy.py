"""What happens after which step: saves, the best evaluation, the early end. Imports transformers.

The decisions are runner.engines.sft.inside.train.schedule's and
runner.engines.sft.inside.train.best's; this asks them at the trainer's events. transformers' own
saving and best-model code is switched off.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runner.common.errors import RunnerError
from runner.engines.sft.inside.train import best
from runner.engines.sft.inside.train.best import Evaluation
from runner.engines.sft.inside.train.schedule import learning_rate_at, saves_at
from runner.engines.sft.plan import SftPlan
from runner.jobs.training import TrainingSettings
from runner.runs import checkpoints
from runner.runs.folder import RunFolder


class StageSteps(TrainerCallback):
    """Begins each stage with its step. To be asked before all that reads the learning rate."""

    def __init__(self, training: TrainingSettings) -> None:
        self._training = training

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        if self._training.stages:
            # fp16's scaler skips steps, and transformers then does not move the scheduler
            while lr_scheduler.last_epoch < state.global_step:
                lr_scheduler.step()


class SavePolicyCallback(TrainerCallback):
    """Saves, remembers the best evaluation, ends early and holds stages to their learning rates.

    Args:
        plan: of one training (Plan.trainings).
        folder: of the run.
        step_offset: optimizer steps of the run's earlier trainings.

    Attributes:
        stopped_early: why training ended before its last step, a sentence; None where it did not.
    """

    def __init__(self, plan: SftPlan, folder: RunFolder, step_offset: int) -> None:
        self._training, self._phase = plan.training, plan.phase
        self._folder = folder
        self._offset = step_offset
        self._evaluations: list[Evaluation] = []
        self._counting = False
        self.stopped_early: str | None = None

    def protected(self) -> Collection[int]:
        """Steps of the run whose checkpoints stay: the best saved one, where it is the result."""
        found = self.best_saved() if self._training.load_best_model_at_end else None
        return () if found is None else (found.step,)

    def best_saved(self) -> Evaluation | None:
        """The best evaluation of this training whose checkpoint is there, whole or not."""
        here = {checkpoints.step_of(path) for path in checkpoints.listed(self._folder.checkpoints)}
        return best.best_saved(self._evaluations, self._phase, here)

    def is_evaluated(self, step: int) -> bool:
        """Whether the weights after `step` steps of the run were evaluated."""
        return bool(self._evaluations) and self._evaluations[-1].step == step

    def eval_loss_at(self, step: int) -> float | None:
        """The eval_loss after `step` steps of the run; None where none was measured."""
        return self._evaluations[-1].eval_loss if self.is_evaluated(step) else None

    def owes_evaluation(self, state: TrainerState, facts: Mapping[str, Any]) -> bool:
        """Whether the step that a resume begins with was to be evaluated, and a stop came first.

        `facts` are those of its checkpoint's seal. The last step's evaluation is not meant: it is
        made up for after training.
        """
        every, step = self._training.eval_steps, state.global_step
        due = bool(every) and 0 < step < state.max_steps and step % (every or 1) == 0
        known = facts.get("eval_loss") is not None or self.is_evaluated(self._offset + step)
        return due and not known

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._counting = True
        known = best.read(self._folder.best)
        step = self._offset + state.global_step
        # what came after the checkpoint is evaluated again
        self._evaluations = [e for e in known if e.step <= step]
        if state.global_step == 0:  # a training's first step was never evaluated
            self._evaluations = [e for e in self._evaluations if e.phase != self._phase]
        if self._evaluations != known and state.is_world_process_zero:
            best.write(self._folder.best, self._evaluations)
        # a checkpoint of the last step, or of the step that was the last; see RunTrainer._run_epoch
        if state.global_step >= state.max_steps or self._should_stop():
            control.should_training_stop = True

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if not self._training.stages:
            return
        planned = learning_rate_at(self._training, state.global_step, state.max_steps)
        for group in optimizer.param_groups:
            if not math.isclose(float(group["lr"]), planned, rel_tol=1e-6):
                raise RunnerError(
                    f"step {state.global_step + 1} would be made with learning rate "
                    f"{float(group['lr']):g}; its stage says {planned:g}"
                )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if saves_at(self._training, state.global_step, state.max_steps):
            control.should_save = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        # transformers evaluates before it saves, so the checkpoint of this step knows its loss
        loss = (metrics or {}).get("eval_loss")
        if not self._counting or loss is None:
            return
        loss = float(loss)
        found = Evaluation(
            self._offset + state.global_step, loss if math.isfinite(loss) else None, self._phase
        )
        self._evaluations.append(found)
        if state.is_world_process_zero:
            best.write(self._folder.best, self._evaluations)
        if state.global_step < state.max_steps and self._should_stop():
            control.should_training_stop = True
            # this is the last step now, so what saves a last step saves it
            if saves_at(self._training, state.global_step, state.global_step):
                control.should_save = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._counting = False  # an evaluation of the result is none of the steps'

    def _should_stop(self) -> bool:
        training = self._training
        state = best.standing(self._evaluations, self._phase, training.early_stopping_threshold)
        self.stopped_early = best.stop_sentence(
            state, training.early_stopping_patience, training.early_stopping_threshold
        )
        return self.stopped_early is not None
