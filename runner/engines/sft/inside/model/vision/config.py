"""The configuration of an image-text model (LLaVA): a checkpoint's own, or composed of two.

Imports transformers when called. A job's folder may hold such a model whole; else language model
and tower each have a checkpoint of their own.
"""

from __future__ import annotations

from typing import Any

from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.inside.model.remote_code import remote_code_refused
from runner.engines.sft.inside.model.tokenizer import IMAGE_TOKEN, add_image_token
from runner.engines.sft.plan import PlannedModel, PlannedVision, SftPlan

VOCABULARY_MULTIPLE = 64
"""A vocabulary that has to grow, grows to a multiple of this, as matrix units want it; llava-hf's
own conversion pads to 64 too."""


def vision_config(plan: SftPlan) -> Any:
    """The LlavaConfig of the plan's model: the checkpoint's own, or composed of two configs.

    Raises RefusedError where the configs can't be had, or the plan's settings don't fit them.
    """
    if is_whole(plan):
        return whole_config(plan)
    text = text_config(plan)
    return compose_config(
        plan,
        text,
        load_auto_config(plan, planned_vision(plan).model, "vision.model"),
        image_token_id(plan),
    )


def is_whole(plan: SftPlan) -> bool:
    """Whether the plan's model is one checkpoint with tower and projector in it."""
    if plan.model.kind == "standin":
        return True
    return str(load_auto_config(plan, plan.model).model_type) == "llava"


def image_tokens(model_or_config: Any) -> int:
    """Tokens that one image takes: the tower's patches, and its class token with "full"."""
    config = getattr(model_or_config, "config", model_or_config)
    tower = config.vision_config
    patches = (int(tower.image_size) // int(tower.patch_size)) ** 2
    return patches + (config.vision_feature_select_strategy == "full")


def image_tokens_of(plan: SftPlan) -> int:
    """`image_tokens` of the plan's model, from configs alone."""
    return image_tokens(vision_config(plan))


def compose_config(plan: SftPlan, text: Any, tower: Any, token: int) -> Any:
    """The LlavaConfig of a language model behind a CLIP tower, "<image>" being token `token`.

    Raises RefusedError where the plan's settings do not fit the tower.
    """
    text.vocab_size = vocabulary_with(text.vocab_size, token)
    return join_configs(planned_vision(plan), text, _clip_tower(plan, tower), token)


def place(model: PlannedModel) -> tuple[str, dict[str, Any]]:
    """What from_pretrained is called with: a folder, or a hub id and its revision."""
    if model.folder is not None:
        return model.folder, {}
    if model.kind == "modelscope":
        raise RefusedError(
            f"modelscope:{model.id} is not on this machine", "runner fetch JOB brings it here"
        )
    return model.id, {"revision": model.revision} if model.revision else {}


def whole_or_tower(plan: SftPlan) -> PlannedModel:
    """The checkpoint that the image tower is in."""
    return plan.model if is_whole(plan) else planned_vision(plan).model


def unreachable(model: PlannedModel, error: Exception, field: str) -> RefusedError:
    """The refusal for a checkpoint, or a part of it, that can't be loaded."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    name = f"{field} {model.folder or model.id}"
    return remote_code_refused(error, name) or RefusedError(
        f"{name} can't be loaded: {reason}",
        f"give a folder with --set {field}=FOLDER, or check the network, HF_ENDPOINT (a mirror) "
        "and HF_HUB_OFFLINE; weights have to be safetensors",
    )


def load_auto_config(plan: SftPlan, model: PlannedModel, field: str = "model") -> Any:
    from transformers import AutoConfig

    where, options = place(model)
    try:
        return AutoConfig.from_pretrained(
            where, trust_remote_code=plan.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        raise unreachable(model, error, field) from None


def planned_vision(plan: SftPlan) -> PlannedVision:
    if plan.vision is None:
        raise RunnerError("the plan has no image tower")
    return plan.vision


def whole_config(plan: SftPlan) -> Any:
    vision, config = planned_vision(plan), load_auto_config(plan, plan.model)
    said = {
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": vision.feature_select,
        "projector_hidden_act": vision.projector_act,
    }
    if plan.model.kind == "standin":  # made for any job of this architecture
        for name, value in said.items():
            setattr(config, name, value)
    else:
        if (vision.model.id, vision.model.folder) != (plan.model.id, plan.model.folder):
            raise RefusedError(
                f"model {plan.model.id} is a LLaVA checkpoint with an image tower of its own, but "
                f"vision.model names {vision.model.id}",
                "name the same for both, or give `model` a language model",
            )
        for (name, value), field in zip(
            said.items(), ("feature_layer", "feature_select", "projector_act"), strict=True
        ):
            if getattr(config, name) != value:
                raise RefusedError(
                    f"vision.{field} is {value}, but {plan.model.id} was trained with "
                    f"{getattr(config, name)}",
                    f"--set vision.{field}={getattr(config, name)}",
                )
    token = image_token_id(plan)
    if config.image_token_index != token:
        raise RefusedError(
            f"{plan.model.id}: {IMAGE_TOKEN} is token {token} of its tokenizer, but its config "
            f"says {config.image_token_index}",
            "tokenizer and config.json of the folder don't belong together",
        )
    _require_layer(vision, config.vision_config)
    return config


def text_config(plan: SftPlan) -> Any:
    config = load_auto_config(plan, plan.model)
    if config.get_text_config() is not config:
        raise RefusedError(
            f"model {plan.model.id} ({config.model_type}) is no language model alone, so no image "
            "tower can be put before it",
            "give `model` a language model, or a LLaVA checkpoint",
        )
    return config


def clip_tower_config(plan: SftPlan) -> Any:
    return _clip_tower(plan, load_auto_config(plan, planned_vision(plan).model, "vision.model"))


def _clip_tower(plan: SftPlan, config: Any) -> Any:
    from transformers import CLIPVisionConfig

    model = planned_vision(plan).model
    if config.model_type == "clip":
        config = config.vision_config
    if not isinstance(config, CLIPVisionConfig):
        raise RefusedError(
            f"vision.model {model.id} is {config.model_type}, not a CLIP image tower",
            "CLIP towers are supported, e.g. openai/clip-vit-large-patch14-336",
        )
    _require_layer(planned_vision(plan), config)
    return config


def _require_layer(vision: PlannedVision, tower: Any) -> None:
    layers = int(tower.num_hidden_layers)  # hidden states: the embeddings', then each layer's
    if not -(layers + 1) <= vision.feature_layer <= layers:
        raise RefusedError(
            f"vision.feature_layer is {vision.feature_layer}, but the image tower of "
            f"{vision.model.id} has {layers} layers",
            f"{-(layers + 1)} to {layers}; -2 is the last but one",
        )


def join_configs(vision: PlannedVision, text: Any, tower: Any, token: int) -> Any:
    from transformers import LlavaConfig

    config = LlavaConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=token,
        vision_feature_layer=vision.feature_layer,
        vision_feature_select_strategy=vision.feature_select,
        projector_hidden_act=vision.projector_act,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    config.image_seq_length = image_tokens(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(text, name, None))
    return config


def image_token_id(plan: SftPlan) -> int:
    from runner.engines.sft.inside.model.tokenizer import load_tokenizer

    tokenizer, _ = load_tokenizer(plan)
    return add_image_token(tokenizer)


def vocabulary_with(size: int, token: int) -> int:
    """Rows of the embedding with `token` among them: as it is, or grown to the next multiple."""
    if token < size:
        return size
    return -(-(token + 1) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
