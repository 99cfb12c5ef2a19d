"""Turn pydantic's errors about a job into our own: where, which field, what was expected.

Imports pydantic, runner.jobs.fields and runner.common.yaml_text; pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from runner.common.errors import Problem, nearest
from runner.common.yaml_text import FieldPath, brief, dotted_name
from runner.jobs.fields import (
    annotation_at,
    choices_of,
    example_of,
    field_elsewhere,
    last_names,
    model_at,
)
from runner.jobs.model import ConflictError

_NUMBER = re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?")

_EXPECTED = {
    "missing": "this field, which has no default",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "lower-case letters, digits and hyphens, a letter first",
    "model_type": "fields of its own (an indented block)",
    "model_attributes_type": "fields of its own (an indented block)",
    "finite_number": "a finite number",
}


def problems_of(
    error: ValidationError,
    raw: Mapping[str, Any],
    shown: str,
    lines: Mapping[FieldPath, int],
    given: Mapping[FieldPath, str],
    root: type[BaseModel],
) -> list[Problem]:
    """Each complaint about a job of the kind `root`, in our words and with its place."""
    found: dict[FieldPath, Problem] = {}
    for item in error.errors(include_url=False):
        key = _real_key(item["loc"], raw, root)
        where = _where(key, shown, lines, given)
        kind, context = item["type"], item.get("ctx", {})
        value = None if kind == "missing" or item["input"] is raw else brief(item["input"])
        expected = _expected(kind, key, root)
        problem, near = item["msg"], None
        if kind == "extra_forbidden":
            model = model_at(annotation_at(key[:-1], root)) or root
            names = list(model.model_fields)
            problem, expected = "unknown field", "one of " + ", ".join(names)
            near = nearest(str(key[-1]), names)
            if near is None or str(key[-1]) in last_names(root):
                near = field_elsewhere(str(key[-1]), root)
        elif kind == "missing":
            problem = "is missing"
        elif kind == "literal_error":
            choices = [str(choice) for choice in choices_of(annotation_at(key, root))]
            problem, expected = "is not one of the possible values", " or ".join(choices)
            near = nearest(str(item["input"]), choices)
        elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
            sign = {
                "greater_than": "above",
                "greater_than_equal": "at least",
                "less_than": "below",
                "less_than_equal": "at most",
            }[kind]
            bound = next(iter(context.values()))
            problem, expected = "is out of range", f"{sign} {bound:.12g}"
        elif kind == "value_error":
            cause = context.get("error")
            text = str(cause or problem)
            if isinstance(cause, ConflictError):
                parts = cause.field.split(".")
                key = (*key, *(int(part) if part.isdigit() else part for part in parts))
                where = _where(key, shown, lines, given)
                value = _value_at(raw, key)
            problem, expected = (
                ("has no usable value", text.removeprefix("expected "))
                if text.startswith("expected ")
                else (text, None)
            )
        elif expected:
            unusable = kind in ("finite_number", "string_too_short")
            problem = "has no usable value" if unusable else "has the wrong type"
        if kind in ("int_type", "float_type") and _NUMBER.fullmatch(str(item["input"]).strip()):
            quoted = isinstance(item["input"], str)
            expected = f"{expected}, without quotes" if quoted else expected
        if key in found:  # the members of a union each complain
            earlier = found[key]
            if expected and earlier.expected and expected not in earlier.expected:
                joined = f"{earlier.expected}, or {expected}"
                found[key] = Problem(
                    where, dotted_name(key), earlier.problem, value, joined, earlier.nearest or near
                )
            continue
        found[key] = Problem(where, dotted_name(key), problem, value, expected, near)
    return list(found.values())


def _expected(kind: str, key: FieldPath, root: type[BaseModel]) -> str | None:
    """What a field wants, by pydantic's name of the complaint; an example is one of that field."""
    if kind in ("list_type", "dict_type"):
        what = "a list" if kind == "list_type" else "a mapping"
        example = example_of(key, root)
        return f"{what}, such as {example}" if example else what
    return _EXPECTED.get(kind)


def _real_key(loc: tuple[str | int, ...], raw: Any, root: type[BaseModel]) -> FieldPath:
    """pydantic's location without the labels that it puts in for union members."""
    key: list[str | int] = []
    place: Any = raw
    for index, part in enumerate(loc):
        if isinstance(place, dict) and (part in place or index == 0):
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int):
            place = place[part] if part < len(place) else None
        elif annotation_at((*key, part), root) is not None:
            place = None
        else:
            continue
        key.append(part)
    return tuple(key)


def _where(
    key: FieldPath, shown: str, lines: Mapping[FieldPath, int], given: Mapping[FieldPath, str]
) -> str:
    for length in range(len(key), 0, -1):
        if key[:length] in given:
            return f"--set {given[key[:length]]}"
        if key[:length] in lines:
            return f"{shown}:{lines[key[:length]]}"
    for path, text in given.items():
        if path[: len(key)] == key:  # a block that only --set BLOCK.FIELD names
            return f"--set {text}"
    return shown


def _value_at(raw: Any, key: FieldPath) -> str | None:
    for part in key:
        if isinstance(raw, list) and isinstance(part, int):
            raw = raw[part] if part < len(raw) else None
        else:
            raw = raw.get(part) if isinstance(raw, dict) else None
    return None if raw is None else brief(raw)
