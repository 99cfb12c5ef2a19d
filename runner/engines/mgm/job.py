"""What a job on the MGM toolkit says: the editable part of its 10k baseline, and LoRA.

Imports pydantic and the jobs' common ground. Field names are the toolkit's flags or PEFT's names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from runner.jobs.base import Job, JobHead
from runner.jobs.model import ConflictError, JobModel

PRETRAIN_GLOBAL_BATCH = 256  # samples an optimizer step, all GPUs together (the baseline's check)
FINETUNE_GLOBAL_BATCH = 128

Profile = Literal["16GiB", "24GiB"]

BatchSize = Annotated[int, Field(ge=1, le=1024)]
Text = Annotated[str, Field(min_length=1)]


class MgmTraining(JobModel):
    """What both trainings of the baseline have in common."""

    image_folder: str | None = Field(
        None, description="Folder that the rows' image paths start from; empty: the rows' folder."
    )
    per_device_train_batch_size: BatchSize | None = Field(
        None, description="Samples a GPU takes at once; empty: what the profile says."
    )
    gradient_accumulation_steps: BatchSize | None = Field(
        None,
        description="Batches summed up before a step; empty: as many as make the global batch.",
    )
    dataloader_num_workers: int = Field(
        4, ge=0, le=64, description="Processes that read images, for each GPU."
    )
    model_max_length: int | None = Field(
        None,
        ge=64,
        le=8192,
        description="Tokens of a sample at most, its 576 image tokens too; empty: by the profile.",
    )


GENERAL_QUESTION = "What is in the picture?"


class MgmPretrain(MgmTraining):
    """Stage 1: only the projector and the patch info mining learn; 256 samples a step."""

    data_path: Text = Field(description="Captions, as data-juicer wrote them (JSONL).")
    questions: str | None = Field(
        None,
        description="The LLaVA JSON file (stage_1.json) that has the question to each row's id; "
        "empty: every row asks default_question.",
    )
    default_question: Text = Field(
        GENERAL_QUESTION, description="Asked in every row where there is no such file."
    )
    columns: dict[Literal["id", "text", "images"], Text] = Field(
        {},
        description="What the rows call their id, text and images, where that is something else, "
        "e.g. {text: caption}.",
    )
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="Peak of the cosine schedule.")


class MgmLora(JobModel):
    """The adapter on every linear layer of the language model, by PEFT's names."""

    r: int = Field(16, ge=1, le=1024, description="LoRA rank; a count.")
    lora_alpha: int = Field(
        32, ge=1, description="Scaling numerator, a whole number; the update is times alpha / r."
    )
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="Share of inputs dropped, 0 to 1.")
    bias: Literal["none", "all"] = Field(
        "none", description="Which biases are trained. Upstream crashes on lora_only."
    )


class MgmFinetune(MgmTraining):
    """Stage 2: LoRA beside the projector; 128 samples a step."""

    data_path: Text = Field(description="Instructions as LLaVA JSON.")
    learning_rate: float = Field(2e-5, gt=0, lt=1, description="Peak of the cosine schedule.")
    lora: MgmLora = MgmLora()
    bits: Literal[16, 8, 4] = Field(
        16, description="Bits of a frozen weight in this stage; 8 or 4 is QLoRA (bitsandbytes)."
    )


class MgmInfer(JobModel):
    """Answers of the merged model to two benchmarks, where their data is present."""

    textvqa_questions: str | None = Field(
        None, description="llava_textvqa_val_v051_ocr.jsonl; empty or absent: not run."
    )
    textvqa_images: str | None = Field(None, description="TextVQA's folder train_images.")
    mmbench: str | None = Field(
        None, description="mmbench_dev_20230712.tsv; empty or absent: not run."
    )
    cuda_index: int = Field(
        0, ge=0, le=15, description="Which of the run's GPUs answers, counted from 0."
    )


class MgmSmoke(JobModel):
    """What a smoke changes; its global batch is not the baseline's, and it says so."""

    max_steps: int = Field(5, ge=1, description="Optimizer steps of each training.")
    save_steps: int = Field(2, ge=1, description="Steps between two checkpoints.")
    gradient_accumulation_steps: BatchSize = Field(1, description="Of both trainings.")
    max_samples: int = Field(200, ge=1, description="Rows of the pretraining at most.")


class MgmSettings(JobHead):
    """The baseline of the MGM 10k challenge with LoRA in its second stage.

    Relative paths start at the job file's folder, the current one, or runner's cache, where
    `runner fetch` puts things: the first where the path is there.
    """

    engine: Literal["mgm"] = Field("mgm", description="mgm: the MGM toolkit trains.")
    python: str | None = Field(
        None,
        min_length=1,
        description="Interpreter of the toolkit's environment; empty: the mgm image's, else "
        "python3.",
    )
    experiment_name: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Goes into the names of the output folders (EXP_NAME).",
    )
    toolkit: Text = Field(description="The folder that holds the toolkit's package mgm/.")
    model_name_or_path: Text = Field(
        description='Folder of gemma-2b-it; "gemma" must be in its path, which selects the class.'
    )
    vision_tower: Text = Field(
        description='Folder of clip-vit-large-patch14-336; "openai" must be in its path.'
    )
    vision_tower_aux: Text = Field(
        description="Folder of openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup."
    )
    profile: Profile = Field(
        "16GiB",
        description="Batch sizes and lengths that a budget of GPU memory allows: 16GiB takes "
        "1 x 256 of 2,048 tokens and 1 x 128 of 1,024, 24GiB takes 2 x 128 and 1 x 128 of 2,048.",
    )
    attn_implementation: Literal["sdpa", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernels; flash_attention_2 needs flash-attn in the image."
    )
    pretrain: MgmPretrain
    finetune: MgmFinetune
    max_samples: int = Field(
        200_000, ge=1, description="Pretraining rows at most; beyond, a sample as upstream draws."
    )
    image_size_aux: int = Field(
        768, ge=32, le=1536, description="Side of the image that the ConvNeXt tower sees, pixels."
    )
    num_train_epochs: float = Field(1, gt=0, le=100, description="Epochs of both trainings.")
    logging_steps: int = Field(1, ge=1, description="Steps between two logged losses.")
    save_steps: int = Field(100, ge=1, description="Steps between two checkpoints.")
    save_total_limit: int = Field(1, ge=1, le=100, description="Checkpoints kept.")
    open_images: Literal["all"] | Annotated[int, Field(ge=0)] = Field(
        500,
        description="How many images are opened before training, spread over all of them; every "
        "one is looked for in any case.",
    )
    infer: MgmInfer = MgmInfer()
    smoke: MgmSmoke = MgmSmoke()

    @model_validator(mode="after")
    def _batches_fit(self) -> MgmSettings:
        _check_batch("pretrain", self.pretrain, PRETRAIN_GLOBAL_BATCH)
        _check_batch("finetune", self.finetune, FINETUNE_GLOBAL_BATCH)
        return self


class MgmJob(Job, MgmSettings):
    """A job on the MGM toolkit. Anything not said has the default that `runner show` prints."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> MgmJob:
        """Refuse what the toolkit's trainings would not heed, with what they do instead."""
        cpu = self.launch.device == "cpu"
        for field, message in _without_effect(self, cpu=cpu):
            raise ConflictError(field, message)
        return self


def _without_effect(job: MgmJob, *, cpu: bool) -> Iterator[tuple[str, str]]:
    """Dotted field and reason of each setting that would change nothing."""
    launch, sharded = job.launch, (job.launch.deepspeed, job.launch.offload)
    always = "the toolkit's trainings run ZeRO-2 with the optimizer in host memory on GPUs"
    if cpu and sharded != ("none", "none"):
        field = "deepspeed" if launch.deepspeed != "none" else "offload"
        yield f"launch.{field}", "has no effect: on a CPU the toolkit runs without DeepSpeed"
    elif launch.deepspeed in ("zero1", "zero3"):
        yield "launch.deepspeed", f"has no effect: {always}; leave it out"
    elif sharded not in (("none", "none"), ("zero2", "optimizer")):
        yield "launch.offload", f"has no effect: {always}; say optimizer, or neither of the two"
    if launch.threads_per_process is not None:
        yield (
            "launch.threads_per_process",
            "has no effect: the toolkit's processes take their threads from the environment "
            "(OMP_NUM_THREADS); leave it out",
        )
    if cpu and launch.num_processes > 1:
        yield "launch.num_processes", "has no effect: on a CPU the toolkit trains in one process"
    if job.budget.oom_snapshot:
        yield "budget.oom_snapshot", "has no effect: the toolkit records no allocations"
    if cpu and job.infer.cuda_index:
        yield "infer.cuda_index", "has no effect: launch.device is cpu"
    if cpu and job.attn_implementation == "flash_attention_2":
        yield "attn_implementation", "flash_attention_2 needs a GPU; launch.device is cpu"
    pretrain = job.pretrain
    if pretrain.questions is not None and pretrain.default_question != GENERAL_QUESTION:
        yield (
            "pretrain.default_question",
            "has no effect: pretrain.questions has the question to each row; keep one",
        )


def _check_batch(stage: str, training: MgmTraining, expected: int) -> None:
    batch, accumulation = (
        training.per_device_train_batch_size or 1,
        training.gradient_accumulation_steps or 1,
    )
    if expected % (batch * accumulation):
        raise ConflictError(
            f"{stage}.gradient_accumulation_steps",
            f"batch {batch} x accumulation {accumulation} does not go into {expected} samples a "
            "step, whatever the number of GPUs",
        )
