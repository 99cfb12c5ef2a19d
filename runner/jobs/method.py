"""What a job trains: the LoRA or prefix adapter, quantization of the base, a vision tower.

Imports pydantic and runner.jobs.model only. Field names are PEFT's and bitsandbytes' own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from runner.jobs.model import ConflictError, JobModel

Method = Literal["lora", "qlora", "prefix", "full"]


class LoraSettings(JobModel):
    """The LoRA adapter, by PEFT's names; for methods lora and qlora."""

    r: int = Field(16, ge=1, le=1024, description="LoRA rank: columns of A and B; a count.")
    lora_alpha: float = Field(
        32,
        gt=0,
        le=1e6,
        description="Scaling numerator; the update is scaled by lora_alpha / r, with rsLoRA by "
        "lora_alpha / sqrt(r).",
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of adapter inputs dropped in training, 0 to 1."
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Layers that get an adapter: all-linear (every linear layer but the output "
        "head) or a list of module names such as [q_proj, v_proj].",
    )
    use_rslora: bool = Field(
        False, description="Rank-stabilized LoRA: scale by lora_alpha / sqrt(r) (Kalajdzievski)."
    )
    use_dora: bool = Field(
        False, description="DoRA: train each weight's magnitude beside the low-rank direction."
    )
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Number format that the adapter is held in. bf16 takes half the memory for it "
        "and its optimizer state, and loses updates below 1/256 of a weight.",
    )

    @model_validator(mode="after")
    def _some_modules(self) -> LoraSettings:
        if self.target_modules == []:
            raise ConflictError("target_modules", "is empty, so no layer would be trained")
        return self


class QuantizationSettings(JobModel):
    """How method qlora stores the frozen base weights (bitsandbytes)."""

    bits: Literal[4, 8] = Field(4, description="Bits of a stored weight.")
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4 bits only: the number format.")
    double_quant: bool = Field(
        True, description="4 bits only: quantize the scales too; saves 0.4 bits a weight."
    )
    or_lora: bool = Field(
        False,
        description="Where bitsandbytes can't be used, train plain LoRA on unquantized weights "
        "and say so; without it such a run is refused.",
    )


class PrefixSettings(JobModel):
    """The prefix of method prefix: trained keys and values before every layer's own."""

    num_virtual_tokens: int = Field(
        20, ge=1, le=4096, description="Length of the trained prefix in tokens; a count."
    )
    prefix_projection: bool = Field(
        False, description="Compute the prefix by a small network in training."
    )


class VisionSettings(JobModel):
    """An image tower put before the language model, as in LLaVA (LlavaForConditionalGeneration)."""

    model: str = Field(
        min_length=1,
        description="Weights of the image tower (CLIP): a folder, a hub id or modelscope:ID.",
    )
    feature_layer: int = Field(
        -2, description="The tower's hidden layer whose patches are taken; -2 is the last but one."
    )
    feature_select: Literal["default", "full"] = Field(
        "default", description="default leaves the class token out, full keeps it."
    )
    projector_act: str = Field(
        "gelu", description="Activation between the two linear layers of the projector."
    )
