"""The smoke of a job on the MGM toolkit where toolkit, weights or rows are not on this machine.

Its commands are checked against the flags that the toolkit's real parser takes, and its nearest
relative that runs natively is smoked in its place. Every report says exactly that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runner.common.errors import RefusedError, RunnerError
from runner.engines.mgm.command import parser_problems, recorded_flags, stage_flags
from runner.engines.mgm.job import FINETUNE_GLOBAL_BATCH, PRETRAIN_GLOBAL_BATCH, MgmJob
from runner.engines.mgm.plan import PlannedMgm
from runner.engines.mgm.resolve import absent, make_mgm_plan, mgm_job
from runner.engines.mgm.run_plan import MgmPlan
from runner.engines.sft.facts import Facts, gather
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.resolve import make_plan
from runner.jobs.load import LoadedJob
from runner.plans.facts import HostFacts, gather_host

STAND_IN = "llava-gemma-10k-lora"
"""Gemma behind a CLIP tower, trained in the same two stages: MGM without its ConvNeXt branch."""


def smoke_plan(loaded: LoadedJob, max_steps: int) -> tuple[MgmPlan, HostFacts, str | None]:
    """The smoke's plan, and why the toolkit itself can't be smoked here; None where it can.

    Raises:
        RefusedError: as the planning; not for an image of the toolkit that is not there.
    """
    try:
        facts = gather_host(loaded.job)
        plan = make_mgm_plan(loaded, facts, "smoke", max_steps)
    except RefusedError as error:
        if loaded.job.launch.on == "local":
            raise
        here = loaded.job.model_copy(
            update={"launch": loaded.job.launch.model_copy(update={"on": "local"})}
        )
        facts = gather_host(here)
        plan = make_mgm_plan(replace(loaded, job=here), facts, "smoke", max_steps)
        return plan, facts, error.message
    missing = absent(plan.mgm)
    if not missing:
        return plan, facts, None
    return plan, facts, "not on this machine: " + ", ".join(each.field for each in missing)


def checked_flags(plan: MgmPlan) -> int:
    """How many flags of both trainings the toolkit's real parser takes, by its recorded list.

    Raises:
        RunnerError: it would refuse some of them.
    """
    recorded, count = recorded_flags(), 0
    for stage in ("pretrain", "finetune"):
        flags = stage_flags(plan.mgm, stage)
        if problems := parser_problems(flags, recorded):
            raise RunnerError(f"the toolkit's parser refuses the {stage} command: {problems[0]}")
        count += len(flags)
    return count


def stand_in(
    loaded: LoadedJob,
    plan: MgmPlan,
    why: str,
    max_steps: int,
    load: Callable[[str, list[str]], LoadedJob],
) -> tuple[SftPlan, Facts]:
    """The plan of the native stand-in with the job's own settings, and what is not as the job says.

    Args:
        load: reads a job by its name and overrides.

    Raises:
        SpecError: a setting of the job's that the native engine can't have.
        RefusedError: as the native engine's planning.
    """
    count = checked_flags(plan)
    job = mgm_job(loaded)
    own_rows = has_own_rows(plan.mgm)
    native = load(STAND_IN, overrides(job, plan.mgm, own_rows=own_rows))
    kept: dict[str, object] = {
        name: getattr(job, name) for name in ("budget", "timeout_minutes", "on_end")
    }
    kept["launch"] = native.job.launch.model_copy(update={"share": job.launch.share})
    # its own image is the toolkit's, which can't train this
    kept["container"] = job.container.model_copy(update={"image": None})
    native = replace(native, job=native.job.model_copy(update=kept))
    facts = gather(native)
    other = make_plan(native, facts, "smoke", max_steps)
    lines = [
        f"native {STAND_IN} in place of the MGM toolkit, which was not run ({why})",
        f"of MGM itself {count} flags of the rendered commands were checked against the recorded "
        "list of its real parser, and nothing else",
        *differences(job, plan.mgm, other, facts, own_rows=own_rows),
    ]
    # the missing warm-up is told above, by the toolkit's own name
    lines += [text for text in other.substitutions if not text.startswith("no warm-up")]
    return other.model_copy(update={"job": loaded.name, "substitutions": lines}), facts


def has_own_rows(planned: PlannedMgm) -> bool:
    """Whether the job's rows are all on this machine, under names that the native engine knows."""
    paths = [planned.pretrain.data_path, planned.finetune.data_path]
    paths += [planned.questions] if planned.questions else []
    return all(Path(path).is_file() for path in paths) and not planned.columns


def overrides(job: MgmJob, planned: PlannedMgm, *, own_rows: bool) -> list[str]:
    """What of the job the native stand-in takes, as texts of --set."""
    values: dict[str, object] = {
        "launch.on": job.launch.on,
        "launch.device": job.launch.device,
        "launch.num_processes": job.launch.num_processes,
        "budget.gpu_memory": None,  # the job's own budget is put in whole
        "lora.r": planned.lora.r,
        "lora.lora_alpha": planned.lora.lora_alpha,
        "lora.lora_dropout": planned.lora.lora_dropout,
    }
    for number, training in enumerate((planned.pretrain, planned.finetune)):
        place = f"phases.{number}.training"
        values |= {
            f"{place}.learning_rate": training.learning_rate,
            f"{place}.per_device_train_batch_size": training.per_device_train_batch_size,
            f"{place}.gradient_accumulation_steps": training.gradient_accumulation_steps,
            f"{place}.global_batch_size": None,
            f"{place}.max_length": training.model_max_length,
        }
    if own_rows:
        values |= {
            "data.train": planned.pretrain.data_path,
            "phases.0.data.questions": planned.questions,
            "phases.0.data.image_folder": planned.pretrain.image_folder,
            "phases.0.data.max_rows": planned.max_samples,
            "phases.1.data.train": planned.finetune.data_path,
            "phases.1.data.image_folder": planned.finetune.image_folder,
        }
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def differences(
    job: MgmJob, planned: PlannedMgm, other: SftPlan, facts: Facts, *, own_rows: bool
) -> list[str]:
    """What of the job's own the stand-in does not do, a line each."""
    samples = [
        training.training.per_device_train_batch_size
        * training.training.gradient_accumulation_steps
        * other.launch.num_processes
        for training in other.trainings
    ]
    steps = planned.max_steps
    lines = [
        f"smoke: {steps} steps of {samples[0]} and {samples[1]} samples instead of "
        f"{PRETRAIN_GLOBAL_BATCH} and {FINETUNE_GLOBAL_BATCH}"
    ]
    if steps == 1:
        lines.append("no warm-up in place of warmup_ratio 0.03: the only step would have rate 0")
    if other.launch.device == "cpu" and job.launch.device != "cpu":
        lines.append(f"CPU in place of a GPU: {facts.gpu_absence}")
    if planned.bits != 16:
        lines.append(
            f"unquantized weights in place of finetune.bits {planned.bits}: a model with an image "
            "tower is not quantized by the native engine"
        )
    if planned.lora.bias != "none":
        lines.append(f"no biases trained in place of finetune.lora.bias {planned.lora.bias}")
    if planned.attn_implementation != "sdpa":
        lines.append(f"sdpa in place of attn_implementation {planned.attn_implementation}")
    if job.container.image is not None:
        lines.append(f"the image that trains natively in place of {job.container.image}")
    if planned.columns:
        lines.append("sample rows in place of the job's, whose pretrain.columns only MGM reads")
    elif not own_rows:
        lines.append(f"sample rows in place of {_absent_rows(planned)}")
    return [
        *lines,
        "not tried, since only the toolkit has it: DeepSpeed with the optimizer on the host, "
        f"vision_tower_aux, image_size_aux {planned.image_size_aux}, save_steps, "
        "save_total_limit, dataloader_num_workers, merging, inference",
    ]


def _absent_rows(planned: PlannedMgm) -> str:
    paths = [planned.pretrain.data_path, planned.finetune.data_path, planned.questions]
    return " and ".join(path for path in paths if path and not Path(path).is_file())
