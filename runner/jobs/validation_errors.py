"""Turn pydantic's errors about a job into our own: where, which field, what was expected.

Imports pydantic, runner.common.yaml_text and this package's `describe_errors` and `fields`; pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from runner.common.errors import Problem
from runner.common.yaml_text import FieldPath, brief, dotted_name
from runner.jobs.describe_errors import Complaint, describe
from runner.jobs.fields import (
    annotation_at,
)
from runner.jobs.model import ConflictError


def problems_of(
    error: ValidationError,
    raw: Mapping[str, object],
    shown: str,
    lines: Mapping[FieldPath, int],
    given: Mapping[FieldPath, str],
    root: type[BaseModel],
) -> list[Problem]:
    """Each complaint about a job of the kind `root`, in our words and with its place."""
    found: dict[FieldPath, Problem] = {}
    for item in error.errors(include_url=False):
        key, kind, context = _real_key(item["loc"], raw, root), item["type"], item.get("ctx", {})
        value = None if kind == "missing" or item["input"] is raw else brief(item["input"])
        told = describe(Complaint(kind, item["msg"], context, item["input"], key, root))
        if isinstance(conflict := context.get("error"), ConflictError):
            parts = conflict.field.split(".")
            key = (*key, *(int(part) if part.isdigit() else part for part in parts))
            value = _value_at(raw, key)
        where = _where(key, shown, lines, given)
        if key in found:  # the members of a union each complain
            earlier = found[key]
            if told.expected and earlier.expected and told.expected not in earlier.expected:
                joined, near = f"{earlier.expected}, or {told.expected}", earlier.nearest
                found[key] = Problem(
                    where, dotted_name(key), earlier.problem, value, joined, near or told.nearest
                )
            continue
        found[key] = Problem(
            where, dotted_name(key), told.problem, value, told.expected, told.nearest
        )
    return list(found.values())


def _real_key(loc: tuple[str | int, ...], raw: object, root: type[BaseModel]) -> FieldPath:
    """pydantic's location without the labels that it puts in for union members."""
    key: list[str | int] = []
    place: object = raw
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


def _value_at(raw: object, key: FieldPath) -> str | None:
    for part in key:
        if isinstance(raw, list) and isinstance(part, int):
            raw = raw[part] if part < len(raw) else None
        else:
            raw = raw.get(part) if isinstance(raw, dict) else None
    return None if raw is None else brief(raw)
