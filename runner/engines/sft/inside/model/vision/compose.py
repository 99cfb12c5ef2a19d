"""An image tower before a language model (LLaVA): loaded or composed, its tower frozen.

Imports torch and transformers when called; images are read in runner.engines.sft.inside.images.

The model is transformers' LlavaForConditionalGeneration: CLIP's patches go through a projector of
two linear layers and take the places of the "<image>" tokens in the text. A job's folder may hold
such a model whole; else language model and tower are each loaded from their own checkpoint and put
together here, with a projector drawn anew, which the job's first phase trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.inside.model.adapter_config import require_plain_model
from runner.engines.sft.inside.model.vision.config import (
    clip_tower_config,
    image_token_id,
    is_whole,
    join_configs,
    place,
    planned_vision,
    text_config,
    unreachable,
    vision_config,
    vocabulary_with,
    whole_config,
)
from runner.engines.sft.plan import PlannedModel, SftPlan

LANGUAGE_MODEL = r"model\.language_model\."


def load_vision_model(plan: SftPlan, dtype: Any) -> Any:
    """The plan's image-text model in `dtype`, on the CPU, its tower frozen.

    A stand-in or a LLaVA checkpoint is loaded whole. Else language model and tower come from their
    own checkpoints, exactly; rows for added tokens are the mean of the others (Hewitt 2021), and
    the projector is drawn as LLaVA draws it (nn.Linear's own way): call set_seed before.

    Raises:
        RefusedError: weights or settings that can't be had or don't fit, weights that are missing.
    """
    if plan.launch.deepspeed == "zero3":
        raise RefusedError(
            "a model with an image tower is not trained under ZeRO-3 here",
            "--set launch.deepspeed=zero2 (or none)",
        )
    model = _load_whole(plan, dtype) if is_whole(plan) else _compose(plan, dtype)
    loose = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if loose:
        raise RunnerError(f"weights were never loaded: {', '.join(loose[:5])}")
    freeze_tower(model)
    return model


def vision_model_on_meta(plan: SftPlan) -> Any:
    """The same architecture on the meta device, for exact parameter counts without weights."""
    import torch
    from transformers import LlavaForConditionalGeneration

    config = vision_config(plan)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    freeze_tower(model)
    return model


def adapter_targets(model: Any, modules: str | list[str] = "all-linear") -> str:
    """PEFT's target_modules, a regular expression: linear layers of the language model alone.

    Neither the tower's layers, which are named alike (q_proj, ...), nor the projector's, nor the
    output head. `modules` is the job's lora.target_modules.

    Raises SpecError naming modules that the language model lacks, with the nearest it has.
    """
    from runner.engines.sft.inside.model.modules import linear_names, require_modules

    names = linear_names(model.model.language_model)
    if modules == "all-linear":
        chosen = sorted({name.rsplit(".", 1)[-1] for name in names})
    else:
        chosen = [modules] if isinstance(modules, str) else list(modules)
        require_modules(chosen, names, model.model.language_model)
    ends = "|".join(re.escape(name) for name in chosen)
    return rf"{LANGUAGE_MODEL}(?:.*\.)?(?:{ends})"


def freeze_tower(model: Any) -> None:
    """Keep the tower as it is, and out of the backward pass.

    Frozen weights alone are not enough: with gradient checkpointing PEFT makes the outputs of every
    input embedding, the tower's patches among them, require gradients, and the backward pass would
    go through the whole tower for nothing.
    """
    import torch

    tower = model.model.vision_tower
    tower.requires_grad_(False)
    tower.forward = torch.no_grad()(tower.forward)


def _load_whole(plan: SftPlan, dtype: Any) -> Any:
    from transformers import LlavaForConditionalGeneration

    where, options = place(plan.model)
    options |= {"config": whole_config(plan), "trust_remote_code": plan.trust_remote_code}
    return _loaded(LlavaForConditionalGeneration, plan.model, "model", where, dtype, options)


def _compose(plan: SftPlan, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, CLIPVisionModel, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    vision = planned_vision(plan)
    text_config(plan)
    tower_config = clip_tower_config(plan)
    token = image_token_id(plan)
    where, options = place(plan.model)
    options["trust_remote_code"] = plan.trust_remote_code
    text = _loaded(AutoModelForCausalLM, plan.model, "model", where, dtype, options)
    where, options = place(vision.model)
    options |= {"config": tower_config, "trust_remote_code": plan.trust_remote_code}
    tower = _loaded(CLIPVisionModel, vision.model, "vision.model", where, dtype, options)

    _grow(text, vocabulary_with(text.config.vocab_size, token))
    config = join_configs(vision, text.config, tower.config, token)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    head = text.get_output_embeddings()
    if type(model.model.language_model) is not type(text.base_model) or head.bias is not None:
        raise RefusedError(
            f"model {plan.model.id} ({text.config.model_type}): LlavaForConditionalGeneration "
            "can't hold this language model",
            "take one with a plain output layer (gemma, llama, qwen2, mistral, ...)",
        )
    projector = LlavaMultiModalProjector(config).to(dtype)
    model.model.language_model = text.base_model
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector
    model.lm_head = head
    model.generation_config = text.generation_config
    return model.eval()


def _grow(text: Any, size: int) -> None:
    """Give a language model an embedding of `size` rows, each new one the mean of the others."""
    import torch

    old = int(text.config.vocab_size)
    if size == old:
        return
    text.resize_token_embeddings(size, mean_resizing=False)
    embeddings, head = text.get_input_embeddings().weight, text.get_output_embeddings().weight
    with torch.no_grad():
        for weight in (embeddings,) if head is embeddings else (embeddings, head):
            weight[old:] = weight[:old].mean(dim=0, dtype=torch.float32).to(weight.dtype)


def _loaded(
    kind: Any, model: PlannedModel, field: str, where: str, dtype: Any, options: dict[str, Any]
) -> Any:
    """from_pretrained that leaves nothing at random: missing or misshapen weights are refused."""
    require_plain_model(where, options)
    try:
        with _quiet():  # of a whole CLIP the text half is left out, and would be listed
            loaded, info = kind.from_pretrained(
                where, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise unreachable(model, error, field) from None
    wrong = sorted(str(name) for name in (*info["missing_keys"], *info["mismatched_keys"]))
    if wrong:
        raise RefusedError(
            f"{field} {where} lacks {len(wrong)} weights that {type(loaded).__name__} has: "
            + ", ".join(wrong[:5])
            + (", ..." if len(wrong) > 5 else ""),
            "the checkpoint is of another architecture, or incomplete",
        )
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
