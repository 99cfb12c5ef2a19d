"""Where the toolkit, the weights and the data of mgm-10k-lora come from. A table, and nothing more.

Standard library only; downloads nothing. Addresses of the challenge's files are those of its
download script (lxp17-17/BLIP2-Enhanced-MGM-Training eb58a72, download_10k_baseline.sh; the 400k
variant in reyvan14/Better_Synth_challenge 114a4c7, download.sh). It names them by http; the same
server has them over https. No checksums of them are published, so what arrives is checked by what
is in it, and `sha256` stays None until someone has one. Hub files are checked by the sha256 that
the hub states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MGM_REPOSITORY = "https://github.com/dvlab-research/MGM.git"
MGM_COMMIT = "769820cb71afc7c2b9a2166ca3ce92db1636215c"
_CHALLENGE = "https://dail-wlcb.oss-cn-wulanchabu.aliyuncs.com/dj-competition/better_synth"

Part = Literal["toolkit", "weights", "data", "benchmark"]


@dataclass(frozen=True)
class MgmSource:
    """One thing to fetch. Sizes in bytes and hashes are None where no source states them."""

    name: str
    part: Part
    kind: Literal["git", "hub", "file", "archive"]
    where: str  # git address, hub id or URL
    target: str  # where it goes, from the job's folder mgm/
    licence: str
    revision: str | None = (
        None  # commit of git; None: the hub's default branch, recorded on arrival
    )
    files: tuple[str, ...] = ()  # of a hub repository: only these; ("*",) is no choice
    expects: tuple[str, ...] = ()  # files that have to be in the target afterwards
    rows: int | None = None  # of a data file
    field: str | None = None  # the job's field that names the target
    size_bytes: int | None = None
    sha256: str | None = None
    optional: bool = False  # the run does without, and says so
    login: bool = False  # the hub asks for an account that accepted the licence


_GEMMA_FILES = (
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
_AUX_NAME = "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"

SOURCES: tuple[MgmSource, ...] = (
    MgmSource(
        name="MGM toolkit",
        part="toolkit",
        kind="git",
        where=MGM_REPOSITORY,
        revision=MGM_COMMIT,
        target="MGM",
        licence="Apache-2.0",
        expects=("mgm/train/train.py", "mgm/model/builder.py"),
        field="toolkit",
    ),
    MgmSource(
        name="Gemma-2B-it",
        part="weights",
        kind="hub",
        where="google/gemma-2b-it",
        target="model_zoo/LLM/gemma/gemma-2b-it",
        licence="Gemma terms of use",
        files=_GEMMA_FILES,
        expects=("config.json", "model.safetensors.index.json", "tokenizer_config.json"),
        field="model_name_or_path",
        login=True,
    ),
    MgmSource(
        name="CLIP ViT-L/14-336",
        part="weights",
        kind="hub",
        where="openai/clip-vit-large-patch14-336",
        target="model_zoo/OpenAI/clip-vit-large-patch14-336",
        licence="MIT",  # OpenAI's CLIP; the hub's model card states none
        files=("config.json", "preprocessor_config.json", "pytorch_model.bin"),
        expects=("config.json", "preprocessor_config.json", "pytorch_model.bin"),
        field="vision_tower",
    ),
    MgmSource(
        name="OpenCLIP ConvNeXt-L",
        part="weights",
        kind="hub",
        where="laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
        target=f"model_zoo/OpenAI/{_AUX_NAME}",  # the hub's own name would select no class (trap 8)
        licence="MIT",
        files=("open_clip_config.json", "open_clip_pytorch_model.bin"),
        expects=("open_clip_config.json", "open_clip_pytorch_model.bin"),
        field="vision_tower_aux",
    ),
    MgmSource(
        name="pretraining images",
        part="data",
        kind="archive",
        where=f"{_CHALLENGE}/data/stage_1/pretrain_stage_1_10k.tar.gz",
        target="data/pretrain_stage_1_10k",
        licence="not stated",
        expects=("images",),
        field="pretrain.image_folder",
    ),
    MgmSource(
        name="pretraining captions",
        part="data",
        kind="file",
        where=f"{_CHALLENGE}/data/stage_1/mgm_pretrain_stage_1_10k.jsonl",
        target="data/pretrain_stage_1_10k/mgm_pretrain_stage_1_10k.jsonl",
        licence="not stated",
        rows=10_000,
        field="pretrain.data_path",
    ),
    MgmSource(
        name="pretraining questions",
        part="data",
        kind="file",
        where=f"{_CHALLENGE}/data/stage_1/stage_1.json",
        target="data/pretrain_stage_1_10k/stage_1.json",
        licence="not stated",
        field="pretrain.questions",
    ),
    MgmSource(
        name="finetuning images",
        part="data",
        kind="archive",
        where=f"{_CHALLENGE}/data/stage_1/finetuning_stage_1_12k.tar.gz",
        target="data/finetuning_stage_1_12k",
        licence="not stated",
        field="finetune.image_folder",
    ),
    MgmSource(
        name="finetuning instructions",
        part="data",
        kind="file",
        where=f"{_CHALLENGE}/data/stage_1/mgm_instruction_stage_1_12k.json",
        target="data/finetuning_stage_1_12k/mgm_instruction_stage_1_12k.json",
        licence="not stated",
        rows=12_000,
        field="finetune.data_path",
    ),
    MgmSource(
        name="TextVQA and MMBench",
        part="benchmark",
        kind="archive",
        where=f"{_CHALLENGE}/data/stage_1/eval_stage_1.tar.gz",
        target="data/eval_stage_1",
        licence="not stated",
        expects=(
            "textvqa/llava_textvqa_val_v051_ocr.jsonl",
            "textvqa/train_images",
            "mmbench/mmbench_dev_20230712.tsv",
        ),
        field="infer",
        optional=True,
    ),
)


def source_of(field: str) -> MgmSource:
    """The source of what a job's field names. Raises KeyError for a field without one."""
    for source in SOURCES:
        if source.field == field:
            return source
    raise KeyError(field)
