"""The sft engine, read from top to bottom: rows, weights, training, adapter, result.

Imports the training stack. Everything that it decides by is in the plan.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.common import durable, terminal
from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.inside.control import STOPPED_EXIT_CODE, Control, Stopped
from runner.engines.sft.inside.imports import without_collection
from runner.engines.sft.inside.model.trained import PROJECTOR_FILE
from runner.engines.sft.inside.oom import start_record
from runner.engines.sft.plan import SftPlan
from runner.runs import checkpoints
from runner.runs.folder import RunFolder
from runner.runs.records import valid_result

if TYPE_CHECKING:
    from runner.engines.sft.inside.train.result import Marks


@dataclass(frozen=True)
class Run:
    """The run that trainings belong to."""

    plan: SftPlan
    folder: RunFolder
    control: Control
    started: float
    """time.monotonic() at its start, in seconds."""
    outside_bytes: int | None = None
    """What this process holds on its GPU outside of torch, where it was measured."""

    @property
    def first(self) -> bool:
        """Whether this process writes the records."""
        return self.control.rank == 0


@dataclass(frozen=True)
class PhaseContext:
    """Where one training stands among those of its run."""

    is_last: bool
    steps_before: int
    resumed_step: int | None
    """The run's step that it resumes from; None for a new start."""
    checkpoint: Path | None
    projector: Path | None
    """What an earlier training made of the projector."""


def train(plan: SftPlan, folder: RunFolder, control: Control, *, resume: bool) -> int:
    """Train `plan` in `folder`, all its trainings in order; the process's exit code.

    Raises:
        RunnerError: rows or weights that can't be trained on.
        NonFiniteLoss, torch.OutOfMemoryError: as they happen.
        Stopped: the end was asked for before the first step.
    """
    first = control.rank == 0
    checkpoint = _resume_point(folder, say=first) if resume else None
    outside = _ready_torch(plan)
    from runner.engines.sft.inside.determinism import deterministic_or_named
    from runner.engines.sft.inside.train.trackers import open_trackers

    resumed = (checkpoints.step_of(checkpoint) if checkpoint else 0) if resume else None
    run = Run(plan, folder, control, time.monotonic(), outside)
    with (
        deterministic_or_named(),
        open_trackers(plan, folder, resumed_step=resumed, first=first) as trackers,
    ):
        steps = _train_all(run, trackers, checkpoint, resume=resume)
        if steps is None:
            trackers.close("stopped")
            control.enter("stopped", interruptible=False)
            return STOPPED_EXIT_CODE
    control.enter("completed", interruptible=False)
    return 0


def _train_all(run: Run, trackers: Any, checkpoint: Path | None, *, resume: bool) -> int | None:
    """Every training of the run that is not done yet; the run's steps, None where stopped."""
    with without_collection():
        import runner.engines.sft.inside.train.trainer  # noqa: F401 - what each training needs
    folder, before, projector = run.folder, 0, None
    trainings = run.plan.trainings
    for number, part in enumerate(trainings, start=1):
        last = number == len(trainings)
        done = durable.read_json(folder.phase(part.phase) / "result.json") if not last else None
        if done and resume:
            done_steps = valid_result(done)["steps"]
            before += done_steps
            projector = folder.phase(part.phase) / PROJECTOR_FILE
            if run.first:
                _say(f"{part.phase} was done before ({done_steps} steps)")
            continue
        within = checkpoint if checkpoint and checkpoints.step_of(checkpoint) > before else None
        resumed_step = checkpoints.step_of(within) if within else before
        place = PhaseContext(
            is_last=last,
            steps_before=before,
            resumed_step=resumed_step if resume else None,
            checkpoint=within,
            projector=projector,
        )
        if part.phase and run.first:
            _say(f"{part.phase}: training {number} of {len(trainings)}")
        steps = _train_one(part, run, place, trackers)
        if steps is None:
            return None
        before += steps
        _free_memory()
        if not last and run.plan.variant != "dry_run":
            projector = folder.phase(part.phase) / PROJECTOR_FILE
            resume, checkpoint = False, None  # what follows starts anew
    return before


def _train_one(plan: SftPlan, run: Run, place: PhaseContext, trackers: Any) -> int | None:
    """One training, with what it leaves written; its steps, or None where it was stopped."""
    folder, control, first = run.folder, run.control, run.first
    from transformers import set_seed

    from runner.engines.sft.inside.image_tokens import image_tokens
    from runner.engines.sft.inside.model.adapter import trainable_setup
    from runner.engines.sft.inside.model.count import counted
    from runner.engines.sft.inside.model.limits import require_plain_weights, require_within
    from runner.engines.sft.inside.model.saving import loss_chunks
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer
    from runner.engines.sft.inside.model.trained import reload_result
    from runner.engines.sft.inside.model.weights import load_model
    from runner.engines.sft.inside.rows import prepare_rows
    from runner.engines.sft.inside.stack import stack_record
    from runner.engines.sft.inside.train.arguments import training_arguments
    from runner.engines.sft.inside.train.metrics_callback import MetricsCallback
    from runner.engines.sft.inside.train.result import ready_to_train
    from runner.engines.sft.inside.train.signals import SignalCallback
    from runner.engines.sft.inside.train.trainer import RunTrainer

    control.enter("loading")
    require_plain_weights(plan)
    tokenizer, notes = load_tokenizer(plan)
    rows = prepare_rows(plan, tokenizer, image_tokens=image_tokens(plan))
    require_within(plan, tokenizer, rows)  # a survey may be older than the model's folder
    control.stop_if_asked()
    if first:
        hashes = rows.prepared.split_hashes()
        folder.write_json(folder.data_report, {**rows.report(), "split_sha256": hashes})
        rows.prepared.copy_hashes(_hashes_folder(folder, plan))
        for line in [*notes, *rows.lines()]:
            _say(line)
    has_eval = len(rows.eval) > 0
    # the arguments come first: with ZeRO-3 they decide how weights are loaded
    arguments = training_arguments(plan, folder, has_eval=has_eval)
    set_seed(plan.training.seed)  # of weights that loading draws (a projector's)
    model = load_model(plan)
    if place.projector is not None:
        from runner.engines.sft.inside.model.vision.projector import load_projector

        load_projector(model, place.projector)
    control.stop_if_asked()
    records = MetricsCallback(
        plan,
        folder,
        place.resumed_step,
        step_offset=place.steps_before,
        trackers=trackers,
        outside_bytes=run.outside_bytes,
    )
    inputs = _inputs(plan, tokenizer, rows)
    set_seed(plan.training.seed)  # the adapter's draw; TRL 1.16 does so itself
    trainer = RunTrainer(
        model=model,
        args=arguments,
        peft_config=trainable_setup(model, plan),
        callbacks=[records, SignalCallback(control)],
        **inputs,
    )
    trainer.prepare_run(plan, folder, step_offset=place.steps_before, plan_hash=run.plan.hash)
    _require_launch(plan, trainer)
    start = ready_to_train(trainer.model, plan)
    if first:
        folder.write_json(folder.engine_stack, stack_record())
    parameters = counted(trainer.model)
    if first:
        _say(
            f"parameters {parameters.trainable:,} of {parameters.total:,} trainable "
            f"({parameters.percent:.2f} %)"
        )
    if plan.variant == "dry_run":
        _dry_run(trainer, run, place)
        return 0
    control.planned_steps = place.steps_before + _planned_steps(plan, trainer)
    control.enter("training", interruptible=False)
    with loss_chunks(plan.training):
        trainer.train(resume_from_checkpoint=str(place.checkpoint) if place.checkpoint else None)

    steps, planned = trainer.state.global_step, trainer.state.max_steps
    if steps < planned and trainer.stopped_early is None:
        if first:
            _say(f"stopped at step {place.steps_before + steps}; a checkpoint was saved")
        return None
    if trainer.stopped_early and first:
        _say(trainer.stopped_early)
    if records.last_loss is None and place.checkpoint is None:
        raise RunnerError("training ended without a single logged step")

    control.enter("saving", interruptible=False)
    checks: dict[str, Any] = {}
    if has_eval and not trainer.evaluated_last_step:
        control.enter("evaluating", interruptible=False)
        try:
            trainer.evaluate()
        except Stopped:
            checks["evaluation"] = "stopped on request"
    control.enter("saving", interruptible=False)
    saved = _save(trainer, tokenizer, plan, run, place, start)
    if first and place.is_last and plan.variant == "smoke":
        control.enter("reloading", interruptible=False)
        checks["reload"] = reload_result(plan, folder, trainer, inputs["train_dataset"][0])
    if first:
        result = {
            "schema_version": 1,
            "completed": True,
            "steps": place.steps_before + steps,
            "max_steps": place.steps_before + planned,
            "stopped_early": trainer.stopped_early,
            "best": trainer.best_record(),
            "first_loss": records.first_loss,
            "last_loss": records.last_loss,
            "eval_loss": records.eval_loss,
            "tokens": int(records.tokens),
            "trainable_parameters": parameters.trainable,
            "total_parameters": parameters.total,
            "adapter": saved,
            "checks": checks,
            "times": records.statistics(),
            "seconds": round(time.monotonic() - run.started, 3),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            **records.memory_peaks(),
        }
        if place.is_last:
            folder.write_json(folder.engine_result, result)
        else:
            _close_phase(plan, folder, {**result, "steps": steps, "max_steps": planned})
    trainer.accelerator.wait_for_everyone()  # what comes next finds the files of this training
    return steps


def _hashes_folder(folder: RunFolder, plan: SftPlan) -> Path:
    """Where the hashes of a training's rows lie: the last one's in the run folder itself."""
    return folder.row_hashes / plan.phase if plan.phase else folder.row_hashes


def _inputs(plan: SftPlan, tokenizer: Any, rows: Any) -> dict[str, Any]:
    """RunTrainer's arguments that say what goes in: rows, tokenizer, how they become batches."""
    train, held_out = rows.train, rows.eval
    inputs: dict[str, Any] = {"processing_class": tokenizer}
    if plan.vision is not None:
        from runner.engines.sft.inside.images import (
            ImageTextCollator,
            for_trainer,
            image_processor,
            require_images,
        )

        train, held_out = for_trainer(train), for_trainer(held_out)
        if plan.trains == ["projector"]:
            require_images(train)
        inputs["data_collator"] = ImageTextCollator(tokenizer, image_processor(plan))
    return {**inputs, "train_dataset": train, "eval_dataset": held_out if len(held_out) else None}


def _save(
    trainer: Any, tokenizer: Any, plan: SftPlan, run: Run, place: PhaseContext, start: Marks
) -> dict[str, Any]:
    """Write what this training made: the run's result, or what the next training needs."""
    from runner.engines.sft.inside.train.result import publish_from, require_moved, save_result

    folder, first = run.folder, run.first
    if plan.trains == ["projector"]:
        from runner.engines.sft.inside.model.vision.projector import save_projector

        require_moved(trainer.model, start)
        if not first:
            return {}
        model = trainer.accelerator.unwrap_model(trainer.model)
        where = folder.path if place.is_last else _staged_phase(plan, folder)
        return save_projector(model, where / PROJECTOR_FILE)
    best = trainer.best_checkpoint()
    if best is None:
        return save_result(trainer, tokenizer, plan, folder, start=start, first=first)
    if not first:
        return {}
    _say(f"the result is {best.name}, the best by eval_loss")
    return publish_from(best, tokenizer, plan, folder, start=start)


def _staged_phase(plan: SftPlan, folder: RunFolder) -> Path:
    staging = folder.phases / f".{plan.phase}"
    folder.make_folder(staging)
    return staging


def _close_phase(plan: SftPlan, folder: RunFolder, result: dict[str, Any]) -> None:
    """Publish an earlier training's folder whole: from then on a resume starts behind it."""
    staging, final = _staged_phase(plan, folder), folder.phase(plan.phase)
    folder.write_json(staging / "result.json", result)
    folder.write_file(staging / folder.data_report.name, folder.data_report.read_bytes())
    folder.remove(final, as_far_as_possible=True)
    folder.move(staging, final)


def _dry_run(trainer: Any, run: Run, place: PhaseContext) -> None:
    """Everything but training: optimizer, schedule, and the first batch once through the model."""
    import torch

    run.control.enter("dry run", interruptible=False)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    value = float(loss.mean())
    if run.first:
        _say(f"dry run: one batch went through the model, loss {value:.3f}; nothing was trained")
        if place.is_last:
            run.folder.write_json(
                run.folder.engine_result,
                {
                    "schema_version": 1,
                    "completed": True,
                    "dry_run": True,
                    "steps": 0,
                    "max_steps": 0,
                    "first_batch_loss": value,
                },
            )


def _free_memory() -> None:
    """Let go of a training's model before the next one loads its own: its hooks refer to it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _planned_steps(plan: SftPlan, trainer: Any) -> int:
    """Steps of this training, as the trainer will count them from its rows."""
    if plan.training.max_steps is not None:
        return plan.training.max_steps
    from runner.engines.sft.inside.train.length import length_of

    return length_of(plan, len(trainer.train_dataset), 0).steps


def _say(line: str) -> None:
    terminal.say(f"runner: {line}")


def _resume_point(folder: RunFolder, *, say: bool) -> Path | None:
    checkpoint, skipped = checkpoints.newest_whole(folder.checkpoints)
    if say:
        for line in skipped:
            _say(line)
        _say(
            f"resuming from {checkpoint.name}"
            if checkpoint
            else "no whole checkpoint to resume from; training from the start"
        )
    return checkpoint


def _ready_torch(plan: SftPlan) -> int | None:
    """Process-wide settings that must stand before the first tensor; the bytes on the GPU that
    torch's cap leaves for what is outside of torch, None without a cap.
    """
    with without_collection():
        import torch

    from runner.engines.sft.inside.determinism import make_deterministic
    from runner.engines.sft.inside.model.attention import avoid_plan_building

    if plan.deterministic:
        make_deterministic(plan)
    if plan.launch.device == "cpu":
        torch.set_num_threads(plan.launch.threads_per_process)
        if plan.launch.deepspeed != "none":
            import deepspeed.ops

            # its shared-memory reduction is a compiled extension; gloo does the same work
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        return None
    if not torch.cuda.is_available():
        raise RefusedError(
            "the plan trains on a GPU, but torch sees none in this environment",
            f"torch {torch.__version__}; CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', '(unset)')}; runner doctor says more",
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    avoided = avoid_plan_building()
    if avoided and os.environ.get("RANK", "0") == "0":
        _say(avoided)
    start_record(plan)
    limit = plan.budget.limit_bytes if plan.budget.kind == "gpu" else None
    if limit is None:
        return None
    from runner.engines.sft.inside.memory_cap import set_cap

    return set_cap(limit, local, plan.launch.num_processes)


def _require_launch(plan: SftPlan, trainer: Any) -> None:
    """Refuse to train in another way than the plan says: libraries fall back without a word."""
    accelerator = trainer.accelerator
    processes, kind = accelerator.num_processes, str(accelerator.distributed_type.value)
    stage = {"none": None, "zero1": 1, "zero2": 2, "zero3": 3}[plan.launch.deepspeed]
    plugin = accelerator.state.deepspeed_plugin if kind == "DEEPSPEED" else None
    found = plugin.zero_stage if plugin is not None else None
    if processes != plan.launch.num_processes or found != stage:
        raise RunnerError(
            f"the plan launches {plan.launch.num_processes} process(es), DeepSpeed "
            f"{plan.launch.deepspeed}; this is {processes} process(es), {kind}, ZeRO stage {found}"
        )
    if trainer.args.device.type != plan.launch.device:
        raise RunnerError(
            f"the plan trains on {plan.launch.device}; torch chose {trainer.args.device}"
        )
