"""The projector of an image-text model: which of it is trained, and its weights on disk.

Imports torch, peft and safetensors when called.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import RunnerError

PROJECTOR = "multi_modal_projector"


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
