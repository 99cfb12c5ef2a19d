"""An image tower before a language model (LLaVA): composed, frozen, and its projector's weights.

Imports torch, transformers and safetensors when called; images are read in
runner.engines.sft.inside.images.

The model is transformers' LlavaForConditionalGeneration: CLIP's patches go through a projector of
two linear layers and take the places of the "<image>" tokens in the text. A job's folder may hold
such a model whole; else language model and tower are each loaded from their own checkpoint and put
together here, with a projector drawn anew, which the job's first phase trains.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import RefusedError, RunnerError
from runner.engines.sft.inside.model.adapter_config import require_plain_model
from runner.engines.sft.inside.model.remote_code import remote_code_refused
from runner.engines.sft.plan import Plan, PlannedModel, PlannedVision

IMAGE_TOKEN = "<image>"  # noqa: S105
PROJECTOR = "multi_modal_projector"
LANGUAGE_MODEL = r"model\.language_model\."
VOCABULARY_MULTIPLE = 64
"""A vocabulary that has to grow, grows to a multiple of this, as matrix units want it; llava-hf's
own conversion pads to 64 too."""


def load_vision_model(plan: Plan, dtype: Any) -> Any:
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


def vision_model_on_meta(plan: Plan) -> Any:
    """The same architecture on the meta device, for exact parameter counts without weights."""
    import torch
    from transformers import LlavaForConditionalGeneration

    config = vision_config(plan)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    freeze_tower(model)
    return model


def vision_config(plan: Plan) -> Any:
    """The LlavaConfig of the plan's model: the checkpoint's own, or composed of two configs.

    Raises RefusedError where the configs can't be had, or the plan's settings don't fit them.
    """
    if is_whole(plan):
        return _whole_config(plan)
    text = _text_config(plan)
    return compose_config(
        plan, text, _auto_config(plan, _vision(plan).model, "vision.model"), _image_token_id(plan)
    )


def is_whole(plan: Plan) -> bool:
    """Whether the plan's model is one checkpoint with tower and projector in it."""
    if plan.model.kind == "standin":
        return True
    return str(_auto_config(plan, plan.model).model_type) == "llava"


def load_vision_tokenizer_additions(tokenizer: Any) -> int:
    """Make "<image>" one special token of `tokenizer`, where it is not yet; its id."""
    from transformers import AddedToken

    known = tokenizer.get_added_vocab()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if IMAGE_TOKEN not in known or IMAGE_TOKEN not in special:
        token = AddedToken(IMAGE_TOKEN, special=True, normalized=False, lstrip=False, rstrip=False)
        tokenizer.add_tokens([token], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def image_tokens(model_or_config: Any) -> int:
    """Tokens that one image takes: the tower's patches, and its class token with "full"."""
    config = getattr(model_or_config, "config", model_or_config)
    tower = config.vision_config
    patches = (int(tower.image_size) // int(tower.patch_size)) ** 2
    return patches + (config.vision_feature_select_strategy == "full")


def image_tokens_of(plan: Plan) -> int:
    """`image_tokens` of the plan's model, from configs alone."""
    return image_tokens(vision_config(plan))


def adapter_targets(model: Any, modules: str | list[str] = "all-linear") -> str:
    """PEFT's target_modules, a regular expression: linear layers of the language model alone.

    Neither the tower's layers, which are named alike (q_proj, ...), nor the projector's, nor the
    output head. `modules` is the job's lora.target_modules.

    Raises SpecError naming modules that the language model lacks, with the nearest it has.
    """
    from runner.engines.sft.inside.model.adapter import linear_names, require_modules

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


def freeze_all_but_projector(model: Any) -> None:
    """Leave the projector alone to be trained, in float32."""
    model.requires_grad_(False)
    ready_projector(model)


def ready_projector(model: Any) -> None:
    """Let the projector be trained, in float32; to be called before PEFT wraps the model.

    Steps of 2e-5 are lost to rounding in bf16, and fp16 training's gradient scaler takes float32
    weights only; autocast does the rest. The projector takes part in every batch, also in one
    without images: between several processes gradients are exchanged, and where one process has
    none for a weight that the others have, they wait for each other or fail.
    """
    import torch

    projector = _projector(model)
    projector.float()
    projector.requires_grad_(True)
    projector.register_forward_pre_hook(_in_own_precision)

    def take_part(embedding: Any, inputs: Any, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return output
        own = _projector(model)  # PEFT's copy, once it has made one
        return output + own(output.new_zeros(0, own.linear_1.in_features)).sum()  # of nothing: 0

    model.get_input_embeddings().register_forward_hook(take_part)


def _in_own_precision(projector: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where no autocast is on (a comparison, a chat), a bf16 tower's patches meet it in float32."""
    dtype = next(projector.parameters()).dtype
    return tuple(value.to(dtype) for value in inputs)


def projector_alone() -> Any:
    """A PEFT config that trains the projector in full and adapts nothing else.

    With it a phase that trains the projector alone has small checkpoints, from which it goes on
    like any LoRA training; without PEFT each would hold the whole model.
    """
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    return LoraConfig(
        task_type="CAUSAL_LM", target_modules=DUMMY_TARGET_MODULES, modules_to_save=[PROJECTOR]
    )


def projector_parameters(model: Any) -> dict[str, Any]:
    """The projector's weights by transformers' names, those in use where PEFT keeps two sets."""
    return {
        f"{PROJECTOR}.{name}": parameter for name, parameter in _projector(model).named_parameters()
    }


def save_projector(model: Any, path: Path) -> dict[str, Any]:
    """Write the projector's weights to one safetensors file, whole or not at all, as float32.

    Returns sha256 and size_bytes of the file.
    """
    from safetensors.torch import save

    tensors = {
        name: parameter.detach().float().cpu().contiguous()
        for name, parameter in projector_parameters(model).items()
    }
    content = save(tensors, metadata={"format": "pt"})
    durable.write_bytes(path, content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def load_projector(model: Any, path: Path) -> None:
    """Put saved weights into the projector, in the number format that it has.

    Raises RunnerError where the file can't be read or its tensors are not this projector's.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise RunnerError(f"the projector {path} can't be read: {error}") from None
    own = projector_parameters(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if shapes != expected:
        raise RunnerError(
            f"the projector {path} is another model's: it holds {_shown(shapes)}; "
            f"this one has {_shown(expected)}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def _shown(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shapes[name]))}" for name in sorted(shapes))


def _projector(model: Any) -> Any:
    """The projector in use: PEFT's modules_to_save keeps the original beside the trained one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    projector = base.model.multi_modal_projector
    if hasattr(projector, "modules_to_save"):
        return projector.modules_to_save[projector.active_adapters[0]]
    return projector


def _vision(plan: Plan) -> PlannedVision:
    if plan.vision is None:
        raise RunnerError("the plan has no image tower")
    return plan.vision


def place(model: PlannedModel) -> tuple[str, dict[str, Any]]:
    """What from_pretrained is called with: a folder, or a hub id and its revision."""
    if model.folder is not None:
        return model.folder, {}
    if model.kind == "modelscope":
        raise RefusedError(
            f"modelscope:{model.id} is not on this machine", "runner fetch JOB brings it here"
        )
    return model.id, {"revision": model.revision} if model.revision else {}


def whole_or_tower(plan: Plan) -> PlannedModel:
    """The checkpoint that the image tower is in."""
    return plan.model if is_whole(plan) else _vision(plan).model


def unreachable(model: PlannedModel, error: Exception, field: str) -> RefusedError:
    """The refusal for a checkpoint, or a part of it, that can't be loaded."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    name = f"{field} {model.folder or model.id}"
    return remote_code_refused(error, name) or RefusedError(
        f"{name} can't be loaded: {reason}",
        f"give a folder with --set {field}=FOLDER, or check the network, HF_ENDPOINT (a mirror) "
        "and HF_HUB_OFFLINE; weights have to be safetensors",
    )


def _auto_config(plan: Plan, model: PlannedModel, field: str = "model") -> Any:
    from transformers import AutoConfig

    where, options = place(model)
    try:
        return AutoConfig.from_pretrained(
            where, trust_remote_code=plan.trust_remote_code, **options
        )
    except (OSError, ValueError) as error:
        raise unreachable(model, error, field) from None


def _whole_config(plan: Plan) -> Any:
    vision, config = _vision(plan), _auto_config(plan, plan.model)
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
    token = _image_token_id(plan)
    if config.image_token_index != token:
        raise RefusedError(
            f"{plan.model.id}: {IMAGE_TOKEN} is token {token} of its tokenizer, but its config "
            f"says {config.image_token_index}",
            "tokenizer and config.json of the folder don't belong together",
        )
    _require_layer(vision, config.vision_config)
    return config


def _text_config(plan: Plan) -> Any:
    config = _auto_config(plan, plan.model)
    if config.get_text_config() is not config:
        raise RefusedError(
            f"model {plan.model.id} ({config.model_type}) is no language model alone, so no image "
            "tower can be put before it",
            "give `model` a language model, or a LLaVA checkpoint",
        )
    return config


def compose_config(plan: Plan, text: Any, tower: Any, token: int) -> Any:
    """The LlavaConfig of a language model behind a CLIP tower, "<image>" being token `token`.

    Raises RefusedError where the plan's settings do not fit the tower.
    """
    text.vocab_size = _vocabulary(text.vocab_size, token)
    return _composed_config(_vision(plan), text, _clip_tower(plan, tower), token)


def _tower_config(plan: Plan) -> Any:
    return _clip_tower(plan, _auto_config(plan, _vision(plan).model, "vision.model"))


def _clip_tower(plan: Plan, config: Any) -> Any:
    from transformers import CLIPVisionConfig

    model = _vision(plan).model
    if config.model_type == "clip":
        config = config.vision_config
    if not isinstance(config, CLIPVisionConfig):
        raise RefusedError(
            f"vision.model {model.id} is {config.model_type}, not a CLIP image tower",
            "CLIP towers are supported, e.g. openai/clip-vit-large-patch14-336",
        )
    _require_layer(_vision(plan), config)
    return config


def _require_layer(vision: PlannedVision, tower: Any) -> None:
    layers = int(tower.num_hidden_layers)  # hidden states: the embeddings', then each layer's
    if not -(layers + 1) <= vision.feature_layer <= layers:
        raise RefusedError(
            f"vision.feature_layer is {vision.feature_layer}, but the image tower of "
            f"{vision.model.id} has {layers} layers",
            f"{-(layers + 1)} to {layers}; -2 is the last but one",
        )


def _composed_config(vision: PlannedVision, text: Any, tower: Any, token: int) -> Any:
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


def _image_token_id(plan: Plan) -> int:
    from runner.engines.sft.inside.model.weights import load_tokenizer

    tokenizer, _ = load_tokenizer(plan)
    return load_vision_tokenizer_additions(tokenizer)


def _vocabulary(size: int, token: int) -> int:
    """Rows of the embedding with `token` among them: as it is, or grown to the next multiple."""
    if token < size:
        return size
    return -(-(token + 1) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def _load_whole(plan: Plan, dtype: Any) -> Any:
    from transformers import LlavaForConditionalGeneration

    where, options = place(plan.model)
    options |= {"config": _whole_config(plan), "trust_remote_code": plan.trust_remote_code}
    return _loaded(LlavaForConditionalGeneration, plan.model, "model", where, dtype, options)


def _compose(plan: Plan, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, CLIPVisionModel, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    vision = _vision(plan)
    _text_config(plan)
    tower_config = _tower_config(plan)
    token = _image_token_id(plan)
    where, options = place(plan.model)
    options["trust_remote_code"] = plan.trust_remote_code
    text = _loaded(AutoModelForCausalLM, plan.model, "model", where, dtype, options)
    where, options = place(vision.model)
    options |= {"config": tower_config, "trust_remote_code": plan.trust_remote_code}
    tower = _loaded(CLIPVisionModel, vision.model, "vision.model", where, dtype, options)

    _grow(text, _vocabulary(text.config.vocab_size, token))
    config = _composed_config(vision, text.config, tower.config, token)
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
