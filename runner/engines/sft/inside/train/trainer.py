"""TRL's SFTTrainer with what it lacks: whole checkpoints, stages, saves by the plan.

Imports torch, transformers, trl. The training mathematics is the libraries' own.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer
from trl import SFTTrainer

from runner.common import durable, terminal
from runner.engines.sft.inside.control import Stopped
from runner.engines.sft.inside.model.adapter import (
    keep_full_precision,
    load_prefix_encoder,
    save_prefix_encoder,
)
from runner.engines.sft.inside.model.adapter_config import CONFIG, require_plain_adapter
from runner.engines.sft.inside.pickles import deepspeed_states, unloadable
from runner.engines.sft.inside.train.activation_checkpointing import ActivationCheckpointingCallback
from runner.engines.sft.inside.train.best import best_checkpoint
from runner.engines.sft.inside.train.metrics_callback import MetricsCallback
from runner.engines.sft.inside.train.rng import kept_random_state
from runner.engines.sft.inside.train.save_policy import SavePolicyCallback, StageSteps
from runner.engines.sft.inside.train.schedule import learning_rate_at
from runner.engines.sft.plan import SftPlan
from runner.jobs.training import TrainingSettings
from runner.runs import checkpoints
from runner.runs.folder import RunFolder

FULL_BYTES = 1 << 20  # a disk with less free is full


class RunTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints appear whole or not at all, and when the plan says.

    `prepare_run` comes before `train`. The step in trainer.state is the training's own;
    checkpoints are named by the run's, which differs where other trainings went before.
    """

    lr_scheduler: Any
    control: Any
    _longest_first = False
    _training: TrainingSettings | None = None
    _milestones: SavePolicyCallback | None = None
    _step_offset = 0
    _phase = ""
    _plan_hash: str | None = None
    _plan: SftPlan | None = None
    _gone_on_from: Path | None = None
    _operations_per_token: int | None = None

    def prepare_run(
        self,
        plan: SftPlan,
        folder: RunFolder,
        *,
        step_offset: int = 0,
        plan_hash: str | None = None,
    ) -> None:
        """Train by `plan`: its stages, its saves, its best model, its early end.

        Args:
            plan: of one training (Plan.trainings).
            folder: of the run.
            step_offset: optimizer steps of the run's earlier trainings.
            plan_hash: of the whole run's plan, for the checkpoints' seals.
        """
        self._plan, self._training, self._phase = plan, plan.training, plan.phase
        self._longest_first = plan.variant == "smoke"
        self._step_offset, self._plan_hash = step_offset, plan_hash
        self._milestones = SavePolicyCallback(plan, folder, step_offset)
        self.callback_handler.callbacks.insert(0, StageSteps(plan.training))
        self.add_callback(self._milestones)
        self.add_callback(ActivationCheckpointingCallback(plan.training))

    @property
    def stopped_early(self) -> str | None:
        """Why training ended before its last step by its own settings; None where it did not."""
        return self._milestones.stopped_early if self._milestones else None

    @property
    def evaluated_last_step(self) -> bool:
        """Whether the weights as they are now were evaluated already, while training."""
        return self._milestones is not None and self._milestones.is_evaluated(self._step)

    def best_record(self) -> dict[str, Any] | None:
        """The best evaluation of this training that has a checkpoint, as result.json tells it.

        None where no saved step was evaluated. `eval_loss` is in nats a trained token.
        """
        found = self._milestones.best_saved() if self._milestones else None
        if found is None:
            return None
        name = f"checkpoints/{checkpoints.name_of(found.step)}"
        return {"step": found.step, "eval_loss": found.eval_loss, "checkpoint": name}

    def best_checkpoint(self) -> Path | None:
        """The checkpoint that is the training's result; None where that is the weights as they are.

        Where load_best_model_at_end finds none, or not the best one whole, it says so.
        """
        if self._training is None or not self._training.load_best_model_at_end:
            return None
        found, lines = best_checkpoint(Path(self.args.output_dir), self._phase)
        if found is None:
            lines.append(
                "load_best_model_at_end: no evaluated step has a whole checkpoint, so the result "
                f"is step {self._step}, the last"
            )
        if self.is_world_process_zero():
            for line in lines:
                terminal.say(f"runner: {line}")
        return found

    @property
    def _step(self) -> int:
        """The run's step."""
        return self._step_offset + int(self.state.global_step)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # Given to the constructor (optimizers=), DeepSpeed would replace it without a word.
        training = self._training
        if training is None or not training.stages:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            for group in optimizer.param_groups:
                group["initial_lr"] = 1.0  # so that a factor is the learning rate, to the last bit

            def rate(step: int) -> float:
                return learning_rate_at(training, min(step, num_training_steps), num_training_steps)

            self.lr_scheduler = LambdaLR(optimizer, rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self._longest_first:
            return super()._get_train_sampler(train_dataset)
        # rows were put in order of length before; a smoke meets the worst batch first
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def floating_point_ops(self, inputs: Any) -> int:
        """As transformers estimates them: 6 a token and parameter, without embeddings.

        It counts the parameters anew for each batch, by walking through all modules twice: 9 ms of
        a small model on one core. Their number does not change while a training runs.
        """
        name = getattr(self.model, "main_input_name", "input_ids")
        tokens = int(inputs[name].numel()) if name in inputs else 0
        if not tokens:
            return 0
        if self._operations_per_token is None:
            self._operations_per_token = super().floating_point_ops(inputs) // tokens
        return self._operations_per_token * tokens

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the libraries do. Raises RefusedError for a checkpoint that is no mere state."""
        start = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._gone_on_from = start
        try:
            with deepspeed_states(start, deepspeed=self.is_deepspeed_enabled):
                return super().train(resume_from_checkpoint, *args, **kwargs)
        except Exception as error:
            refused = unloadable(error, start) if start is not None else None
            if refused is None:
                raise
            raise refused from None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._gone_on_from is not None:
            self._catch_up(self._gone_on_from)
            self._gone_on_from = None
        # From a checkpoint of the last step transformers would train one more.
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _catch_up(self, checkpoint: Path) -> None:
        """Before the first step of a resume: what the checkpoint's start had begun, and not ended.

        The losses that its next line is the mean of, and the evaluation that a stop cut off. The
        random state is put back after this, so nothing that is drawn here counts.
        """
        begun = durable.read_json(checkpoint / _losses_file(self.args.process_index))
        if isinstance(begun, dict):
            self._tr_loss.fill_(begun["sum"])
            self._globalstep_last_logged = int(begun["since_step"])
        if self.control.should_training_stop:
            return
        owed = self._milestones is not None and self._milestones.owes_evaluation(
            self.state, checkpoints.facts_of(checkpoint)
        )
        if owed and self.eval_dataset is not None:
            self.evaluate()
            self.control.should_save = False  # it is saved: training continues from there

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        since = self._globalstep_last_logged
        if since < self.state.global_step:  # a line's losses are not whole yet
            place = Path(output_dir) / _losses_file(self.args.process_index)
            durable.write_json(place, {"sum": self._tr_loss.item(), "since_step": since})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the libraries do, but training continues as if there had been no evaluation.

        Whole or broken off, it draws nothing that training would have drawn. Asked to end in
        mid-training, save where training stands.
        """
        try:
            with kept_random_state():
                return super().evaluate(*args, **kwargs)
        except Stopped:
            if not self.is_in_train:
                raise
            self.control.should_save = self.control.should_training_stop = True
            # else it began again at the end of the epoch, and drew random numbers for it
            self.control.should_evaluate = False
            return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self._step
        final = Path(self.args.output_dir) / checkpoints.name_of(step)
        staging = final.parent / f".staging-{step}"
        staged = staging / checkpoints.name_of(self.state.global_step)  # as transformers names it
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
                checkpoints.seal(staged, self._facts(step))
                checkpoints.publish(staged, final)
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
                checkpoints.delete(old)
        _barrier()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        save_prefix_encoder(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapter = Path(resume_from_checkpoint) / CONFIG
        if adapter.exists():
            require_plain_adapter(adapter)
        # what PEFT saves of a projected prefix can't be loaded to resume training
        if not load_prefix_encoder(model or self.model, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._plan is not None:  # PEFT makes fp32 of an adapter that trains in bf16
            keep_full_precision(model or self.model, self._plan)

    def _facts(self, step: int) -> dict[str, Any]:
        """What a checkpoint's seal says of it; a resumed run continues from these."""
        callbacks = self.callback_handler.callbacks
        records = next((known for known in callbacks if isinstance(known, MetricsCallback)), None)
        return {
            "step": step,
            "phase": self._phase,
            "phase_step": self.state.global_step,
            "plan": self._plan_hash,
            "eval_loss": self._milestones.eval_loss_at(step) if self._milestones else None,
            "tokens": records.tokens if records else None,
        }

    def _too_many(self, folder: Path) -> list[Path]:
        keep = self._training.save_total_limit if self._training else None
        if keep is None or self._milestones is None:
            return []
        protected = self._milestones.protected()
        return checkpoints.surplus(folder, keep, protected=protected, after=self._step_offset)


def _losses_file(rank: int) -> str:
    """Of a checkpoint: the sum of the losses since the last logged step, in one process."""
    return f"losses_{rank}.json"


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def world_size() -> int:
    """Training processes of this run, from the launcher's environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))
