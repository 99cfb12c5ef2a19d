"""docs/job-fields.md from the descriptions in the models: `python -m runner.engines.job_reference`.

Imports pydantic and the models of the jobs; prints, writes nothing.
"""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from runner.common import terminal
from runner.common.yaml_text import to_yaml
from runner.engines.registry import ENGINES
from runner.jobs.fields import model_at

_HEAD = """# Every field of a job

Written by `./just schema` from the models of jobs (runner/jobs, runner/engines/*/job.py); the same
texts are in jobs/job.schema.json, which editors show while you type. "-" is no default: the field
is left out (`null`). Sizes carry their unit (`12GiB`, `900MiB`, `16GB`). A name with `[]` is a
field of each entry of a list.
"""


def table() -> str:
    """The page, whole."""
    lines = [_HEAD]
    for name, engine in ENGINES.items():
        lines += [f"## Jobs of engine {name}", ""]
        lines += ["| field | values | default | meaning |", "|---|---|---|---|"]
        lines += [*_rows(engine.job_type, ""), ""]
    lines.pop()
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    out = []
    for name, info in model.model_fields.items():
        inner = model_at(info.annotation)
        lists = any(get_origin(part) is list for part in _members(info.annotation))
        out.append(
            f"| `{prefix}{name}` | {_values(info.annotation)} | {_default(info)} | "
            f"{_cell(info.description or '')} |"
        )
        if inner is not None and inner.__name__.startswith("Phase") and inner.__name__ != "Phase":
            continue  # the fields of data and training once more
        if inner is not None:
            out += _rows(inner, f"{prefix}{name}{'[]' if lists else ''}.")
    return out


def _members(annotation: object) -> tuple[object, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _values(annotation: object) -> str:
    return ", ".join(
        dict.fromkeys(_value(part) for part in _members(annotation) if part is not types.NoneType)
    )


def _value(part: Any) -> str:
    origin = get_origin(part)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(part))
    if origin is list:
        inside = _values(get_args(part)[0])
        return f"a list of {inside}" if inside else "a list"
    if origin is dict:
        inside = get_args(part)[1]
        return "names to numbers" if inside is int else "names to texts"
    if hasattr(part, "__metadata__"):
        base = get_args(part)[0]
        if base is int and any(isinstance(each, BeforeValidator) for each in part.__metadata__):
            return "size"
        return _value(get_args(part)[0])
    if isinstance(part, type) and issubclass(part, BaseModel):
        return "fields"
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
    return names.get(part, "a value")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "-"
    if isinstance(value, BaseModel):
        return ""
    return f"`{_cell(to_yaml(value))}`" if value != "" else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    terminal.put(table(), end="")
