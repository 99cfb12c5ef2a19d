"""What a plan trains of its model: PEFT's config, or which of the base's own weights.

Imports torch and peft when called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.inside.model.adapter_config import CONFIG, require_plain_adapter
from runner.engines.sft.inside.model.modules import require_targets
from runner.engines.sft.plan import SftPlan

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig

WEIGHTS = "adapter_model.safetensors"
PREFIX_ENCODER = "prefix_encoder.safetensors"


def trainable_setup(model: Any, plan: SftPlan) -> PeftConfig | None:
    """Ready the model's own weights for the plan, and give PEFT's config for what it adds.

    None for method full, where all of the base's own weights are trained.

    Raises SpecError for target modules that the model lacks, with the nearest it has, and
    RefusedError for a prefix under ZeRO-3.
    """
    if plan.trains == ["projector"]:
        from runner.engines.sft.inside.model.vision.projector import (
            freeze_all_but_projector,
            projector_alone,
        )

        freeze_all_but_projector(model)
        return projector_alone()
    if plan.method == "full":
        return None
    if plan.method == "prefix":
        from peft import PrefixTuningConfig

        if plan.launch.deepspeed == "zero3":
            # PEFT computes what it saves on the first rank, which waits for the others for ever
            raise RefusedError(
                "method prefix can't be trained under ZeRO-3: PEFT can't save a sharded prefix",
                "--set launch.deepspeed=zero2 (or none)",
            )
        return PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=plan.prefix.num_virtual_tokens,
            prefix_projection=plan.prefix.prefix_projection,
        )
    return _lora_config(model, plan)


def _lora_config(model: Any, plan: SftPlan) -> LoraConfig:
    """LoRA, rsLoRA or DoRA, and a projector trained in full beside it."""
    from peft import LoraConfig

    settings = plan.lora
    targets: str | list[str] = settings.target_modules
    beside: list[str] | None = None
    if plan.vision is not None:
        from runner.engines.sft.inside.model.vision.compose import adapter_targets
        from runner.engines.sft.inside.model.vision.projector import PROJECTOR, ready_projector

        targets = adapter_targets(model, settings.target_modules)
        if "projector" in plan.trains:
            ready_projector(model)
            beside = [PROJECTOR]
    elif not isinstance(targets, str):
        require_targets(targets, model)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        modules_to_save=beside,
    )


def keep_full_precision(model: Any, plan: SftPlan) -> None:
    """Hold what is trained in fp32, or in lora.dtype; once the trainer has wrapped the model.

    TRL rounds the adapter of a quantized base to bf16: updates below 1/256 of a weight are lost
    then, and the gradient scaler of fp16 training can't unscale bf16. DeepSpeed keeps fp32 copies
    of its own.
    """
    import torch

    if plan.launch.deepspeed != "none":
        return
    wanted = torch.float32
    if plan.method in ("lora", "qlora") and plan.lora.dtype == "bf16":
        wanted = torch.bfloat16  # asked for by name
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def require_prefix_fits(model: Any) -> None:
    """Put two tokens through a model with a prefix.

    Raises RefusedError where PEFT gives the prefix another shape than the model's keys and values
    have (Falcon's single pair of them, say).
    """
    import torch

    ids = torch.full((1, 2), 3, device=next(model.parameters()).device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (RuntimeError, ValueError, TypeError) as error:
        kind = model.get_base_model().config.model_type
        raise RefusedError(
            f"method prefix does not fit {kind}: {str(error).splitlines()[0]}",
            "--method lora trains this model",
        ) from None
    model.train(training)


def load_adapter(base: Any, adapter: Path) -> Any:
    """The base model with a saved adapter on it, loaded by plain PEFT.

    Raises:
        RefusedError: its config asks for more than LoRA or a prefix, or its weights are not there
            as safetensors (PEFT would take a pickle, or ask the hub).
        RunnerError: it does not fit the base.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    require_plain_adapter(adapter / CONFIG)
    if not (adapter / WEIGHTS).is_file():
        raise RefusedError(f"{adapter} has no {WEIGHTS}", "no other file of weights is taken")
    try:
        return PeftModel.from_pretrained(base, str(adapter))
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunnerError(f"the adapter {adapter} can't be put on its base: {reason[0]}") from error


def save_prefix_encoder(model: Any, folder: Path) -> None:
    """Beside a checkpoint: the network that computes a prefix, where there is one.

    PEFT saves only the prefix that it computes, from which training can't resume.
    """
    encoder = _prefix_encoder(model)
    if encoder is not None:
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu() for name, value in encoder.state_dict().items()}
        save_file(tensors, str(folder / PREFIX_ENCODER), metadata={"format": "pt"})


def load_prefix_encoder(model: Any, folder: Path) -> bool:
    """Put it back into a model that resumes training; False where the method has none."""
    encoder = _prefix_encoder(model)
    if encoder is None:
        return False
    from safetensors.torch import load_file

    encoder.load_state_dict(load_file(str(folder / PREFIX_ENCODER)))
    return True


def _prefix_encoder(model: Any) -> Any | None:
    """PEFT's encoder of a projected prefix; None for any other model."""
    encoders = getattr(model, "prompt_encoder", None)
    if not encoders or not getattr(encoders["default"], "prefix_projection", False):
        return None
    return encoders["default"]
