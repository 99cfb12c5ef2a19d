"""Which layers of a model take an adapter, and the refusal of those that don't.

Imports torch when called.
"""

from __future__ import annotations

from typing import Any

from runner.common.errors import Problem, SpecError, nearest


def linear_names(model: Any) -> list[str]:
    """The last part of the name of every linear layer, each once; quantized ones and GPT-2's
    Conv1D are linear layers too."""
    return sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(model)})


def _linear_layers(model: Any) -> list[str]:
    from torch import nn

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]


def require_modules(wanted: list[str], available: list[str], model: Any) -> None:
    """Refuse (SpecError) target modules whose last part is none of the linear layers' names.

    A module of that name which takes no adapter is named for what it is.
    """
    missing = [name for name in wanted if name.rsplit(".", 1)[-1] not in available]
    head = _output_head(model)
    offered = [name for name in available if head is None or name != head.rsplit(".", 1)[-1]]
    for name in missing:
        if why := _no_layer_because(name, model):
            raise _wrong_target(model, name, why, _choose(offered))
    if missing:
        raise _no_such_layer(model, missing, offered)


def _output_head(model: Any) -> str | None:
    """The name of the layer that makes the logits, which takes no adapter; None where none does."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def _no_layer_because(target: str, model: Any) -> str | None:
    """What a module is that takes no adapter here; None where the model has none of that name."""
    from torch import nn

    found = [
        (name, module)
        for name, module in model.named_modules()
        if name == target or name.endswith(f".{target}")
    ]
    if not found:
        tensors = [name for name, _ in model.named_parameters() if name.endswith(f".{target}")]
        if not tensors:
            return None
        return f"it is a tensor of the model ({tensors[0]}), no linear layer"
    name, module = found[0]
    if isinstance(module, nn.Embedding):
        tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
        if tied and module is model.get_input_embeddings():
            return (
                f"{name} is the embedding, whose weight is the output head's too (tied): an "
                "adapter on one of them would leave the other behind"
            )
        return f"{name} is an embedding; adapters go on linear layers here"
    inside = sorted({one.rsplit(".", 1)[-1] for one in _linear_layers(module) if one})
    if inside:
        return f"{name} is a block of layers ({', '.join(inside)}), not a layer"
    return f"{name} is {_article(type(module).__name__)}, no linear layer"


def _article(word: str) -> str:
    return f"{'an' if word[:1] in 'AEIOU' else 'a'} {word}"


def _choose(available: list[str]) -> str:
    return f"all-linear, or a list of these: {', '.join(available)}"


def _wrong_target(
    model: Any, name: str, problem: str, expected: str, near: str | None = None
) -> SpecError:
    where = str(getattr(model, "name_or_path", "") or "the model")
    return SpecError([Problem(where, "lora.target_modules", problem, name, expected, near)])


def _no_such_layer(model: Any, missing: list[str], available: list[str]) -> SpecError:
    near = {name: nearest(name, available) for name in missing}
    hints = ", ".join(f"{name} -> {hit}" for name, hit in near.items() if hit)
    problem = "the model has no such layer"
    return _wrong_target(model, ", ".join(missing), problem, _choose(available), hints or None)


def require_targets(wanted: list[str], model: Any) -> None:
    """Refuse what PEFT would pass over in silence, or adapt and TRL never train."""
    require_modules(wanted, linear_names(model), model)
    layers = _linear_layers(model)

    def hits(target: str) -> list[str]:  # PEFT's rule
        return [name for name in layers if name == target or name.endswith(f".{target}")]

    for target in wanted:
        if not hits(target):  # its last part is there, under another parent
            last = target.rsplit(".", 1)[-1]
            raise _no_such_layer(model, [target], hits(last))
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    name = _output_head(model)
    if name is not None and any(name in hits(target) for target in wanted):
        why = "the output head takes no adapter, since TRL computes the loss from its weight alone"
        if tied:
            why += " (and that weight is the embedding's too: they are tied)"
        raise _wrong_target(model, name, why, "leave it out, as all-linear does")
