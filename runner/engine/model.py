"""Weights, tokenizer and adapter of a plan. Imports torch, transformers and peft when called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.engine.data.masks import ensure_chat_template
from runner.errors import RefusedError, RunnerError, nearest
from runner.plan import Plan

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model with its adapter; counts."""

    trainable: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.trainable / self.total


def location(plan: Plan) -> tuple[str, dict[str, Any]]:
    """What from_pretrained is called with: a folder, or a hub id and its revision."""
    model = plan.model
    options: dict[str, Any] = {"trust_remote_code": plan.trust_remote_code}
    if model.folder is not None:
        return model.folder, options
    if model.revision:
        options["revision"] = model.revision
    return model.id, options


def load_tokenizer(plan: Plan) -> tuple[Any, list[str]]:
    """The tokenizer, able to chat and to pad, and a line for whatever had to be substituted.

    Raises RefusedError where it can't be had.
    """
    from transformers import AutoTokenizer

    place, options = location(plan)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise _unreachable(plan, error) from None
    notes = []
    substituted = ensure_chat_template(tokenizer)
    if substituted:
        notes.append(substituted)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(
            f"the tokenizer has no pad token; its end token {tokenizer.eos_token!r} pads "
            "(labels are masked by position, so the end of a turn is still trained)"
        )
    return tokenizer, notes


def load_model(plan: Plan) -> Any:
    """The base model in the plan's precision, on the CPU; the trainer moves it.

    Raises RefusedError where the weights can't be had.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan.precision]
    place, options = location(plan)
    try:
        return AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise _unreachable(plan, error) from None


def lora_config(plan: Plan, model: Any) -> LoraConfig:
    """PEFT's config for the plan.

    Raises RefusedError naming target modules that the model lacks, with the nearest it has.
    """
    from peft import LoraConfig

    modules = plan.lora.target_modules
    if not isinstance(modules, str):
        require_modules(modules, linear_names(model))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=plan.lora.r,
        lora_alpha=plan.lora.lora_alpha,
        lora_dropout=plan.lora.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


def linear_names(model: Any) -> list[str]:
    """The last part of the name of every linear layer, each once."""
    from torch import nn

    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    return sorted(names)


def require_modules(wanted: list[str], available: list[str]) -> None:
    """Refuse target modules that no layer of the model is named."""
    missing = [name for name in wanted if name.rsplit(".", 1)[-1] not in available]
    if missing:
        near = {name: nearest(name, available) for name in missing}
        hints = ", ".join(f"{name} -> {hit}" for name, hit in near.items() if hit)
        raise RefusedError(
            f"lora.target_modules {', '.join(missing)}: the model has no such layer; "
            f"it has {', '.join(available)}",
            f"nearest: {hints}" if hints else None,
        )


def count_parameters(plan: Plan) -> ParameterCount:
    """Exact counts without weights: model and adapter on the meta device, from the config alone.

    Raises RefusedError where the config can't be had or the adapter does not fit.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    place, options = location(plan)
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise _unreachable(plan, error) from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=plan.trust_remote_code)
        wrapped = get_peft_model(model, lora_config(plan, model), low_cpu_mem_usage=True)
    return counted(wrapped)


def counted(model: Any) -> ParameterCount:
    """Counts of a model that is there; sharded (ZeRO-3) parameters count whole."""
    trainable = total = 0
    for parameter in model.parameters():
        size = int(getattr(parameter, "ds_numel", 0)) or parameter.numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def load_adapter(base: Any, adapter: Path) -> Any:
    """The base model with a saved adapter on it, loaded by plain PEFT."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(adapter))


def _unreachable(plan: Plan, error: Exception) -> RunnerError:
    place, _ = location(plan)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RefusedError(
        f"the model {place} can't be loaded: {reason}",
        "give a folder with --set model=FOLDER, or check the network, HF_ENDPOINT (a mirror) and "
        "HF_HUB_OFFLINE",
    )
