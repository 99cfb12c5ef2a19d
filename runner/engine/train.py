"""The sft engine, read from top to bottom: rows, weights, training, adapter, result.

Imports the training stack. Everything it decides by stands in the plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from runner import checkpoints, durable
from runner.engine.control import STOPPED_EXIT_CODE, Control, Stopped
from runner.errors import RefusedError, RunnerError
from runner.folder import RunFolder
from runner.plan import Plan
from runner.units import format_bytes


def train(plan: Plan, folder: RunFolder, control: Control, *, resume: bool) -> int:
    """Train `plan` in `folder`; the process's exit code.

    Raises:
        RunnerError: rows or weights that can't be trained on.
        NonFiniteLoss, torch.OutOfMemoryError: as they happen.
        Stopped: the end was asked for before the first step.
    """
    started = time.monotonic()
    first = control.rank == 0
    checkpoint = _resume_point(folder) if resume else None

    _ready_torch(plan)
    from datasets import Dataset
    from transformers import set_seed

    from runner.engine.model import counted, load_model, load_tokenizer, lora_config
    from runner.engine.rows import prepare_rows
    from runner.engine.trainer import Records, Requests, RunTrainer

    set_seed(plan.training.seed)
    tokenizer, notes = load_tokenizer(plan)
    rows = prepare_rows(plan, tokenizer)
    control.stop_if_asked()
    if first:
        durable.write_json(folder.data_report, rows.report())
        for line in [*notes, *rows.lines()]:
            _say(line)
    arguments = _arguments(plan, folder, has_eval=bool(rows.eval))  # first: ZeRO-3 shards weights
    model = load_model(plan)
    control.stop_if_asked()
    resumed_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    records = Records(plan, folder, resumed_step if resume else None)
    trainer = RunTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows.train),
        eval_dataset=Dataset.from_list(rows.eval) if rows.eval else None,
        processing_class=tokenizer,
        peft_config=lora_config(plan, model),
        callbacks=[records, Requests(control)],
    )
    trainer.longest_first = plan.variant == "smoke"
    trainer.keep_checkpoints = plan.training.save_total_limit
    _require_launch(plan, trainer)
    parameters = counted(trainer.model)
    if first:
        _say(
            f"parameters {parameters.trainable:,} of {parameters.total:,} trainable "
            f"({parameters.percent:.2f} %)"
        )
    control.enter("training", interruptible=False)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    steps, planned = trainer.state.global_step, trainer.state.max_steps
    if steps < planned:
        if first:
            _say(f"stopped at step {steps} of {planned}; a checkpoint was saved")
        control.enter("stopped", interruptible=False)
        return STOPPED_EXIT_CODE
    if records.last_loss is None and checkpoint is None:
        raise RunnerError("training ended without a single logged step")

    control.enter("saving", interruptible=False)
    adapter = _save_adapter(trainer, tokenizer, folder, first=first)
    checks: dict[str, Any] = {}
    if rows.eval:
        control.enter("evaluating", interruptible=False)
        try:
            trainer.evaluate()
        except Stopped:
            checks["evaluation"] = "stopped on request"
    if first and plan.variant == "smoke":
        control.enter("reloading", interruptible=False)
        checks["reload"] = _reload(plan, folder, trainer, rows.train[0])
    if first:
        result = {
            "schema_version": 1,
            "completed": True,
            "steps": steps,
            "max_steps": planned,
            "first_loss": records.first_loss,
            "last_loss": records.last_loss,
            "eval_loss": records.eval_loss,
            "tokens": int(records.tokens),
            "trainable_parameters": parameters.trainable,
            "total_parameters": parameters.total,
            "adapter": adapter,
            "checks": checks,
            "seconds": round(time.monotonic() - started, 3),
            **_peaks(plan),
        }
        durable.write_json(folder.engine_result, result)
    control.enter("completed", interruptible=False)
    return 0


def _say(line: str) -> None:
    print(f"runner: {line}", file=sys.stderr, flush=True)


def _resume_point(folder: RunFolder) -> Path | None:
    checkpoint, skipped = checkpoints.newest_whole(folder.checkpoints)
    for line in skipped:
        _say(line)
    _say(
        f"going on from {checkpoint.name}"
        if checkpoint
        else "no whole checkpoint to go on from; training from the start"
    )
    return checkpoint


def _ready_torch(plan: Plan) -> None:
    """Process-wide settings that must stand before the first tensor."""
    import torch

    if plan.launch.device == "cpu":
        torch.set_num_threads(plan.launch.threads_per_process)
        if plan.launch.deepspeed != "none":
            import deepspeed.ops

            # its shared-memory reduction is a compiled extension; gloo does the same work
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        return
    if not torch.cuda.is_available():
        raise RefusedError(
            "the plan trains on a GPU, but torch sees none in this environment",
            f"torch {torch.__version__}; CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', '(unset)')}; runner doctor says more",
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    limit = plan.budget.limit_bytes if plan.budget.kind == "gpu" else None
    if limit is not None:
        _cap(limit, local)


def _cap(limit_bytes: int, device: int) -> None:
    """Torch's own cap: allocations beyond the budget fail inside, as an OutOfMemoryError.

    The cap leaves room for what the allocator does not hold (CUDA context, libraries), measured
    after one element is on the device and at least 512 MiB (docs: vram, "Torch's own cap").
    """
    import torch

    torch.zeros(1, device=f"cuda:{device}")
    free, total = torch.cuda.mem_get_info(device)
    outside = max(512 << 20, min(total - free - torch.cuda.memory_reserved(device), 1 << 30))
    share = max(0.01, min(1.0, (limit_bytes - outside) / total))
    torch.cuda.set_per_process_memory_fraction(share, device)
    _say(f"torch's cap: {format_bytes(int(share * total))} of {format_bytes(total)}")


def _arguments(plan: Plan, folder: RunFolder, *, has_eval: bool) -> Any:
    from trl import SFTConfig

    from runner.engine.trainer import world_size

    training, launch = plan.training, plan.launch
    # transformers 5.23 renamed it; earlier ones know only the old name
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    recompute = next(
        name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names
    )
    options: dict[str, Any] = {recompute: training.gradient_checkpointing}
    if launch.device == "cpu":
        # With use_cpu accelerate would quietly take DDP in place of DeepSpeed. Without it, and
        # given gloo by name, DeepSpeed finds the CPU by DS_ACCELERATOR; its settings come from
        # the launcher (deepspeed.json), since passed here they would lose the backend again.
        options["use_cpu"] = launch.deepspeed == "none"
        if world_size() > 1 or launch.deepspeed != "none":
            options["ddp_backend"] = "gloo"
    return SFTConfig(
        output_dir=str(folder.checkpoints),
        max_steps=training.max_steps or -1,
        num_train_epochs=training.num_train_epochs,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=(
            "constant_with_warmup"
            if training.lr_scheduler_type == "constant" and training.warmup_ratio
            else training.lr_scheduler_type
        ),
        warmup_steps=training.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a NaN must be seen, not averaged away
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        eval_strategy="steps" if training.eval_steps and has_eval else "no",
        eval_steps=training.eval_steps,
        prediction_loss_only=True,  # logits of a whole evaluation do not fit in memory
        max_length=None,  # rows were cut, and counted, before
        packing=False,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # rows carry input_ids and labels
        remove_unused_columns=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=launch.device == "cuda",
        log_level="warning",
        ddp_find_unused_parameters=False,
        **options,
    )


def _require_launch(plan: Plan, trainer: Any) -> None:
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


def _save_adapter(
    trainer: Any, tokenizer: Any, folder: RunFolder, *, first: bool
) -> dict[str, Any]:
    """Write adapter/ whole: staged, flushed, renamed. Every rank calls it (ZeRO-3 gathers)."""
    staging = folder.path / ".adapter-staging"
    if first:
        shutil.rmtree(staging, ignore_errors=True)
    trainer.save_model(str(staging))
    if not first:
        return {}
    tokenizer.save_pretrained(str(staging))
    (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle; the plan says it all
    weights = staging / "adapter_model.safetensors"
    _require_trained(weights)
    for path in staging.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    if folder.adapter.exists():  # only in a folder resumed after its end
        shutil.rmtree(folder.adapter)
    staging.rename(folder.adapter)
    durable.fsync_folder(folder.path)
    saved = folder.adapter / weights.name
    return {
        "sha256": hashlib.sha256(saved.read_bytes()).hexdigest(),
        "size_bytes": saved.stat().st_size,
    }


def _require_trained(weights: Path) -> None:
    """Refuse an adapter that holds nothing: no tensors, empty ones, or B matrices all zero."""
    from safetensors import safe_open

    with safe_open(str(weights), framework="pt") as stream:
        names = list(stream.keys())
        b_names = [name for name in names if "lora_B" in name]
        if not b_names or any(stream.get_tensor(name).numel() == 0 for name in names):
            raise RunnerError("the saved adapter is empty: no LoRA tensors came out of training")
        if not any(bool(stream.get_tensor(name).any()) for name in b_names):
            raise RunnerError("the saved adapter changes nothing: every lora_B is zero")


def _reload(plan: Plan, folder: RunFolder, trainer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Load base and adapter anew with plain PEFT and compare logits with the trained model's.

    Under ZeRO-3 the trained model is sharded, so only the load itself is checked.
    """
    import torch

    from runner.engine.model import load_adapter, load_model

    fresh = load_adapter(load_model(plan), folder.adapter).eval()
    if plan.launch.deepspeed == "zero3":
        return {"loaded": True, "compared": False}
    trained = trainer.accelerator.unwrap_model(trainer.model).eval()
    ids = torch.tensor([row["input_ids"][:64]])
    with torch.no_grad():
        ours = trained(input_ids=ids.to(trained.device)).logits.float().cpu()
        theirs = fresh(input_ids=ids).logits.float()
    scale = float(ours.abs().max()) or 1.0
    difference = float((ours - theirs).abs().max()) / scale
    limit = 1e-4 if plan.precision == "fp32" else 0.1
    if not difference <= limit:
        raise RunnerError(
            f"the saved adapter is not the trained one: reloaded logits differ by "
            f"{difference:.3g} of their largest value (limit {limit:g})"
        )
    return {"loaded": True, "compared": True, "largest_relative_difference": difference}


def _peaks(plan: Plan) -> dict[str, Any]:
    """Peak memory as this process knows it, in bytes."""
    peaks: dict[str, Any] = {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    }
    if plan.launch.device == "cuda":
        import torch

        peaks["peak_allocated_bytes"] = int(torch.cuda.max_memory_allocated())
    return peaks
