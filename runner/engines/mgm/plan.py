"""MgmSettings and a few facts -> PlannedMgm: every number and path that a run is rendered from.

Pure. Imports pydantic, runner.common.errors, runner.jobs.model and runner.engines.mgm.job only.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from runner.common.errors import Problem, SpecError
from runner.engines.mgm.job import (
    FINETUNE_GLOBAL_BATCH,
    PRETRAIN_GLOBAL_BATCH,
    MgmInfer,
    MgmLora,
    MgmSettings,
    MgmTraining,
    Profile,
)
from runner.jobs.model import JobModel

Device = Literal["cuda", "cpu"]

# batch size a GPU and tokens a sample, for (pretrain, finetune). Predicted, not measured (runner
# vram mgm-10k-lora): Gemma's logits cost 12 bytes for each token and each of 256,000 entries
# (transformers 4.38 keeps them in fp32, shifted, and as gradients), beside 6 GiB of weights.
_PROFILES: dict[Profile, tuple[tuple[int, int], tuple[int, int]]] = {
    "16GiB": ((1, 2048), (1, 1024)),
    "24GiB": ((2, 2048), (1, 2048)),
}


class PlannedMgmTraining(JobModel):
    """One of the two trainings, nothing left open."""

    data_path: str
    image_folder: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    dataloader_num_workers: int
    learning_rate: float
    model_max_length: int
    global_batch_size: int  # batch x accumulation x processes


class PlannedMgm(JobModel):
    """What is rendered and run. Paths are absolute; sizes are bytes, unknown ones None."""

    experiment_name: str
    variant: Literal["train", "smoke"]
    profile: Profile
    device: Device
    gpus: list[str]  # UUIDs or numbers; empty on a CPU
    python: str  # the interpreter of the toolkit's environment
    toolkit: str
    model_name_or_path: str
    vision_tower: str
    vision_tower_aux: str
    attn_implementation: Literal["sdpa", "flash_attention_2"]
    pretrain: PlannedMgmTraining
    questions: str | None
    default_question: str
    finetune: PlannedMgmTraining
    lora: MgmLora
    bits: Literal[16, 8, 4]
    max_samples: int
    image_size_aux: int
    num_train_epochs: float
    max_steps: int | None
    logging_steps: int
    save_steps: int
    save_total_limit: int
    open_images: Literal["all"] | int
    infer: MgmInfer
    columns: dict[str, str] = Field({})  # id, text, images -> the pretraining rows' own keys
    substitutions: list[str] = Field([])

    @property
    def processes(self) -> int:
        """Training processes: one a GPU, one on a CPU."""
        return max(1, len(self.gpus))

    @property
    def pretrain_name(self) -> str:
        return f"MGM-2B-Pretrain-{self.experiment_name}"

    @property
    def finetune_name(self) -> str:
        return f"MGM-2B-Finetune-{self.experiment_name}"

    @property
    def merged_name(self) -> str:
        """The merged model's folder; "mgm" and "2b" in it select its class upstream (trap 8)."""
        return f"{self.finetune_name}-merged"


def plan_mgm(
    settings: MgmSettings,
    *,
    variant: Literal["train", "smoke"] = "train",
    device: Device = "cuda",
    gpus: Sequence[str] = ("0",),
    python: str,
    base_folder: Path,
    where: str = "job",
) -> PlannedMgm:
    """Settings with profile, variant and facts applied; relative paths start at `base_folder`.

    Raises SpecError where the global batch can't be 256 and 128 on so many GPUs (a smoke's is
    smaller and said so), or a path that is given is empty.
    """
    smoke = variant == "smoke"
    processes = 1 if device == "cpu" else len(gpus)
    if processes < 1:
        raise SpecError([Problem(where, "gpus", "no GPU is given", "0", "at least one")])

    if device == "cuda" and settings.infer.cuda_index >= processes:
        given, most = str(settings.infer.cuda_index), f"less than {processes}, the run's GPUs"
        raise SpecError([Problem(where, "infer.cuda_index", "no such GPU", given, most)])

    def path(text: str) -> str:
        return os.path.normpath(base_folder / Path(text).expanduser())

    def optional(text: str | None) -> str | None:
        return path(text) if text else None

    def training(
        name: str,
        given: MgmTraining,
        rate: float,
        rows: str,
        expected: int,
        default: tuple[int, int],
    ) -> PlannedMgmTraining:
        batch = given.per_device_train_batch_size or default[0]
        accumulation = given.gradient_accumulation_steps or max(1, expected // (batch * processes))
        if smoke:
            accumulation = settings.smoke.gradient_accumulation_steps
        total = batch * accumulation * processes
        if total != expected and not smoke:
            field = f"{name}.gradient_accumulation_steps"
            told = f"batch {batch} x accumulation {accumulation} x GPUs {processes} = {total}"
            raise SpecError(
                [Problem(where, field, told, str(accumulation), f"{expected} samples a step")]
            )
        return PlannedMgmTraining(
            data_path=path(rows),
            image_folder=path(given.image_folder or str(Path(rows).parent)),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=given.dataloader_num_workers,
            learning_rate=rate,
            model_max_length=given.model_max_length or default[1],
            global_batch_size=total,
        )

    first, second = _PROFILES[settings.profile]
    pretrain = training(
        "pretrain",
        settings.pretrain,
        settings.pretrain.learning_rate,
        settings.pretrain.data_path,
        PRETRAIN_GLOBAL_BATCH,
        first,
    )
    finetune = training(
        "finetune",
        settings.finetune,
        settings.finetune.learning_rate,
        settings.finetune.data_path,
        FINETUNE_GLOBAL_BATCH,
        second,
    )
    return PlannedMgm(
        experiment_name=settings.experiment_name,
        variant=variant,
        profile=settings.profile,
        device=device,
        gpus=list(gpus) if device == "cuda" else [],
        python=python,
        toolkit=path(settings.toolkit),
        model_name_or_path=path(settings.model_name_or_path),
        vision_tower=path(settings.vision_tower),
        vision_tower_aux=path(settings.vision_tower_aux),
        attn_implementation=settings.attn_implementation,
        pretrain=pretrain,
        questions=optional(settings.pretrain.questions),
        default_question=settings.pretrain.default_question,
        columns={str(name): key for name, key in settings.pretrain.columns.items()},
        finetune=finetune,
        lora=settings.finetune.lora,
        bits=settings.finetune.bits,
        max_samples=min(settings.max_samples, settings.smoke.max_samples)
        if smoke
        else settings.max_samples,
        image_size_aux=settings.image_size_aux,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.smoke.max_steps if smoke else None,
        logging_steps=1 if smoke else settings.logging_steps,
        save_steps=settings.smoke.save_steps if smoke else settings.save_steps,
        save_total_limit=settings.save_total_limit,
        open_images=settings.open_images,
        infer=MgmInfer(
            textvqa_questions=optional(settings.infer.textvqa_questions),
            textvqa_images=optional(settings.infer.textvqa_images),
            mmbench=optional(settings.infer.mmbench),
            cuda_index=settings.infer.cuda_index,
        ),
        substitutions=list(
            _substitutions(
                settings, variant, device, pretrain.global_batch_size, finetune.global_batch_size
            )
        ),
    )


def _substitutions(
    settings: MgmSettings, variant: str, device: Device, pretrain: int, finetune: int
) -> list[str]:
    """What differs from the baseline as the job has it, a line each."""
    lines = []
    if variant == "smoke":
        lines.append(
            f"smoke: {settings.smoke.max_steps} steps of {pretrain} and {finetune} samples "
            f"instead of {PRETRAIN_GLOBAL_BATCH} and {FINETUNE_GLOBAL_BATCH}"
        )
        if settings.smoke.max_steps == 1:
            lines.append(
                "no warm-up in place of warmup_ratio 0.03: the only step would have rate 0"
            )
    if device == "cpu":
        lines.append("CPU trial: no DeepSpeed, no TF32, the toolkit's calls of CUDA turned to CPU")
    if settings.pretrain.questions is None:
        lines.append(
            f'every pretraining row asks "{settings.pretrain.default_question}", since no file of '
            "questions is given"
        )
    return lines
