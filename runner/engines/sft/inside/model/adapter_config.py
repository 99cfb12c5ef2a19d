"""Whether an adapter_config.json is LoRA or a prefix and no more, before PEFT reads it.

PEFT imports what some of its keys name (megatron_core), and whole types of adapters load models,
tokenizers and pickles from wherever the file says. An adapter may come from anywhere. Imports
transformers when called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import RefusedError

CONFIG = "adapter_config.json"
TYPES = ("LORA", "PREFIX_TUNING")
DEFAULTS = {"bias": ("none", "all", "lora_only"), "megatron_core": ("megatron.core",)}
"""Texts that PEFT writes without having been asked."""
TEXTS = frozenset(
    {
        "peft_type",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
    }
)
"""Keys with names of layers and numbers for them; nothing is loaded by what they hold."""


def require_plain_adapter(config: Path) -> None:
    """Refuse an adapter whose config asks for more than LoRA or a prefix computes.

    Every key that is not known to be harmless has to be empty or a number: a list of the harmful
    ones would be of one PEFT alone.

    Raises RefusedError with file, field and value.
    """
    said = durable.read_json(config)
    if not isinstance(said, dict):
        raise RefusedError(f"{config} can't be read as JSON", "the adapter is damaged")
    if said.get("peft_type") not in TYPES:
        raise _refused(config, "peft_type", said.get("peft_type"), " or ".join(TYPES))
    for key, value in said.items():
        if key == "task_type":
            if value not in (None, "CAUSAL_LM"):
                raise _refused(config, key, value, "CAUSAL_LM")
        elif key == "auto_mapping":  # PEFT writes it where task_type is not said
            library = value.get("parent_library") if isinstance(value, dict) else ""
            if value is not None and not str(library).startswith("transformers."):
                raise _refused(config, key, value, "a class of transformers")
        elif key in DEFAULTS:
            if value is not None and value not in DEFAULTS[key]:
                raise _refused(config, key, value, " or ".join(DEFAULTS[key]))
        elif key not in TEXTS and not _is_harmless(key, value):
            raise _refused(config, key, value, "nothing")


def _is_harmless(key: str, value: Any) -> bool:
    if key.endswith("_config"):
        return not value
    return isinstance(value, (bool, int, float)) or not value


def _refused(config: Path, key: str, value: Any, expected: str) -> RefusedError:
    return RefusedError(
        f"{config}: {key} is {str(value)[:120]!r}; expected {expected}",
        "adapters are loaded here where they are LoRA or a prefix alone: other keys can have PEFT "
        "import modules, or load models and files from elsewhere",
    )


def require_plain_model(place: str, options: dict[str, Any]) -> None:
    """The same of an adapter that lies in a model's folder: transformers puts it on unasked.

    `place` and `options` are from_pretrained's. Raises RefusedError.
    """
    from transformers.utils import find_adapter_config_file

    found = find_adapter_config_file(place, revision=options.get("revision"))
    if found is not None:
        require_plain_adapter(Path(found))
