"""The fields of a job as data: dotted names, types, possible values. Pure; imports pydantic.

Every function takes the type of job that is meant (`root`).
"""

from __future__ import annotations

import types
from typing import Literal, Union, get_args, get_origin

from pydantic import BaseModel

from runner.common.errors import nearest
from runner.common.yaml_text import FieldPath


def possible_types(key: FieldPath, root: type[BaseModel]) -> tuple[object, ...]:
    """The members of a field's type, None for NoneType; of an entry of a text mapping too."""
    info = annotation_at(key, root)
    if info is None and key[:-1]:
        outer = _members(annotation_at(key[:-1], root))
        mappings = [part for part in outer if get_origin(part) is dict]
        info = get_args(mappings[0])[1] if mappings else None
    return tuple(None if part is types.NoneType else part for part in _members(info))


def _members(annotation: object) -> tuple[object, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def model_at(annotation: object) -> type[BaseModel] | None:
    """The block that a field holds, itself or in a list, or None."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        if get_origin(candidate) is list:
            return model_at(get_args(candidate)[0])
    return None


def annotation_at(key: FieldPath, root: type[BaseModel]) -> object:
    """The type of the field at `key`, or None."""
    current: object = root
    for part in key:
        if isinstance(part, int) or part.isdigit():  # an entry of a list of blocks
            lists = [each for each in _members(current) if get_origin(each) is list]
            if not lists:
                return None
            current = get_args(lists[0])[0]
            continue
        model = model_at(current)
        if model is None or part not in model.model_fields:
            return None
        current = model.model_fields[str(part)].annotation
    return current


def all_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted field name of a job, in order; what lists hold is not gone into."""
    out = []
    for name, info in model.model_fields.items():
        lists = any(get_origin(part) is list for part in _members(info.annotation))
        inner = None if lists else model_at(info.annotation)
        out.append(prefix + name)
        if inner is not None:
            out += all_fields(inner, f"{prefix}{name}.")
    return out


def without_empty_nulls(raw: dict[str, object], root: type[BaseModel]) -> dict[str, object]:
    """`raw` without the nulls that stand for an empty list or mapping, where that is the default.

    So `stages: null` says what leaving the field out says. Other nulls stay, and are judged by the
    field's own type.
    """
    kept: dict[str, object] = {}
    for name, value in raw.items():
        info = root.model_fields.get(str(name))
        members = _members(info.annotation) if info else ()
        empty = info is not None and info.get_default(call_default_factory=True) in ([], {})
        if value is None and empty and types.NoneType not in members:
            continue
        inner = model_at(info.annotation) if info else None
        if inner is not None and isinstance(value, dict):
            value = without_empty_nulls(value, inner)
        elif inner is not None and isinstance(value, list):
            value = [
                without_empty_nulls(one, inner) if isinstance(one, dict) else one for one in value
            ]
        kept[name] = value
    return kept


_EXAMPLES = {
    "target_modules": "[q_proj, v_proj]",
    "models": "[Qwen/Qwen2.5-0.5B-Instruct]",
    "environment": "[HTTPS_PROXY]",
    "ignore_keys": "[weight]",
    "secrets": "[WANDB_API_KEY]",
    "container.arguments": "[--ipc=host]",
    "arguments": "[--epochs, '3']",
    "inputs": "[rows.jsonl]",
    "columns": "{text: review}",
    "labels": "{'0': negative, '1': positive}",
    "placeholders": "{name: Rue}",
    "ulimits": "{memlock: -1}",
    "text": "{SEED: '1'}",
    "stages": "[{max_steps: 100, learning_rate: 2e-4}]",
    "sources": "[{rows: more.jsonl}]",
    "phases": "[{name: first, trains: [projector]}]",
    "mounts": "[{source: /data}]",
}
"""A value of each list and mapping, by its (last) name, as YAML; of one of names to text "text"."""


def example_of(key: FieldPath, root: type[BaseModel]) -> str | None:
    """A value that a list or a mapping may have, as YAML in one line; None for other fields."""
    annotation = annotation_at(key, root)
    kinds = [get_origin(part) for part in _members(annotation)]
    dotted = ".".join(str(part) for part in key)
    last = str(key[-1]) if key else ""
    if list in kinds:
        if choices := [
            one for one in choices_of(annotation) if one not in _plain_choices(key, root)
        ]:
            return f"[{choices[0]}]"
        return _EXAMPLES.get(dotted) or _EXAMPLES.get(last)
    if dict in kinds:
        found = _EXAMPLES.get(last, "")
        return found if found.startswith("{") else _EXAMPLES["text"]
    return None


def _plain_choices(key: FieldPath, root: type[BaseModel]) -> list[object]:
    """Words that a field takes in place of a list."""
    members = _members(annotation_at(key, root))
    return [one for part in members if get_origin(part) is Literal for one in get_args(part)]


def choices_of(annotation: object) -> list[object]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in choices_of(part)]


def field_elsewhere(name: str, root: type[BaseModel]) -> str | None:
    """The field of that (or nearly that) name in another block: `r` -> lora.r."""
    last = last_names(root)
    near = nearest(name, last, likeness=0.75)  # of so many names, some always looks alike
    return last[near] if near else None


def last_names(root: type[BaseModel]) -> dict[str, str]:
    """Field name without its blocks -> dotted; of two, that of the outermost block."""
    fields = sorted(all_fields(root), key=lambda dotted: dotted.count("."), reverse=True)
    return {dotted.rsplit(".", 1)[-1]: dotted for dotted in fields}
