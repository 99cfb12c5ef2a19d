"""The fields of a job as data: dotted names, types, possible values. Imports runner.job; pure.

Every function takes the kind of job that is meant (`root`), the native engine's unless said.
"""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from runner.errors import nearest
from runner.job import Job
from runner.yaml_text import FieldPath


def possible_types(key: FieldPath, root: type[BaseModel] = Job) -> tuple[Any, ...]:
    """The members of a field's type, None for NoneType; of an entry of a text mapping too."""
    info = annotation_at(key, root)
    if info is None and key[:-1]:
        outer = _members(annotation_at(key[:-1], root))
        mappings = [part for part in outer if get_origin(part) is dict]
        info = get_args(mappings[0])[1] if mappings else None
    return tuple(None if part is types.NoneType else part for part in _members(info))


def _members(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def model_at(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, itself or in a list, or None."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        if get_origin(candidate) is list:
            return model_at(get_args(candidate)[0])
    return None


def annotation_at(key: FieldPath, root: type[BaseModel] = Job) -> Any:
    """The type of the field at `key`, or None."""
    current: Any = root
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


def all_fields(model: type[BaseModel] = Job, prefix: str = "") -> list[str]:
    """Every dotted field name of a job, in order; what lists hold is not gone into."""
    out = []
    for name, info in model.model_fields.items():
        lists = any(get_origin(part) is list for part in _members(info.annotation))
        inner = None if lists else model_at(info.annotation)
        out.append(prefix + name)
        if inner is not None:
            out += all_fields(inner, f"{prefix}{name}.")
    return out


def choices_of(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in choices_of(part)]


def field_elsewhere(name: str, root: type[BaseModel] = Job) -> str | None:
    """The field of that (or nearly that) name in another block: `r` -> lora.r."""
    last = last_names(root)
    near = nearest(name, last, likeness=0.75)  # of so many names, some always looks alike
    return last[near] if near else None


def last_names(root: type[BaseModel] = Job) -> dict[str, str]:
    """Field name without its blocks -> dotted; of two, that of the outermost block."""
    fields = sorted(all_fields(root), key=lambda dotted: dotted.count("."), reverse=True)
    return {dotted.rsplit(".", 1)[-1]: dotted for dotted in fields}
