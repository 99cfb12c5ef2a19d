"""What is wrong with a field of a job, by pydantic's kind of complaint: a table. Pure.

Imports pydantic, runner.common and this package's `fields`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from runner.common.errors import nearest
from runner.common.yaml_text import FieldPath
from runner.jobs.fields import (
    annotation_at,
    choices_of,
    example_of,
    field_elsewhere,
    last_names,
    model_at,
)

_NUMBER = re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Complaint:
    """What pydantic says of one field."""

    kind: str
    """pydantic's name of it, such as "greater_than"."""
    message: str
    context: Mapping[str, object]
    value: object
    """What the field was given."""
    key: FieldPath
    root: type[BaseModel]
    """The kind of job that `key` starts from."""


@dataclass(frozen=True)
class Description:
    """The same in our words, as a Problem has them."""

    problem: str
    expected: str | None = None
    nearest: str | None = None


def describe(complaint: Complaint) -> Description:
    """A complaint in our words; pydantic's own where the table has none for its kind."""
    describer = DESCRIBERS.get(complaint.kind)
    return describer(complaint) if describer else Description(complaint.message)


def _unknown_field(complaint: Complaint) -> Description:
    name, root = str(complaint.key[-1]), complaint.root
    names = list((model_at(annotation_at(complaint.key[:-1], root)) or root).model_fields)
    near = nearest(name, names)
    if near is None or name in last_names(root):
        near = field_elsewhere(name, root)
    return Description("unknown field", "one of " + ", ".join(names), near)


def _not_a_choice(complaint: Complaint) -> Description:
    choices = [str(choice) for choice in choices_of(annotation_at(complaint.key, complaint.root))]
    near = nearest(str(complaint.value), choices)
    return Description("is not one of the possible values", " or ".join(choices), near)


def _out_of_range(sign: str) -> Callable[[Complaint], Description]:
    def describer(complaint: Complaint) -> Description:
        bound = next(iter(complaint.context.values()))
        return Description("is out of range", f"{sign} {bound:.12g}")

    return describer


def _refused_value(complaint: Complaint) -> Description:
    """What a validator of our own says; "expected ..." is what it would have taken."""
    text = str(complaint.context.get("error") or complaint.message)
    if text.startswith("expected "):
        return Description("has no usable value", text.removeprefix("expected "))
    return Description(text)


def _wrong_type(expected: str) -> Callable[[Complaint], Description]:
    return lambda _: Description("has the wrong type", expected)


def _unusable(expected: str) -> Callable[[Complaint], Description]:
    return lambda _: Description("has no usable value", expected)


def _wrong_number(expected: str) -> Callable[[Complaint], Description]:
    def describer(complaint: Complaint) -> Description:
        value = complaint.value
        quoted = isinstance(value, str) and _NUMBER.fullmatch(value.strip())
        return Description(
            "has the wrong type", f"{expected}, without quotes" if quoted else expected
        )

    return describer


def _wrong_collection(what: str) -> Callable[[Complaint], Description]:
    """With an example of that very field, where there is one."""

    def describer(complaint: Complaint) -> Description:
        example = example_of(complaint.key, complaint.root)
        return Description("has the wrong type", f"{what}, such as {example}" if example else what)

    return describer


_BLOCK = "fields of its own (an indented block)"

DESCRIBERS: Mapping[str, Callable[[Complaint], Description]] = {
    "missing": lambda _: Description("is missing", "this field, which has no default"),
    "extra_forbidden": _unknown_field,
    "literal_error": _not_a_choice,
    "greater_than": _out_of_range("above"),
    "greater_than_equal": _out_of_range("at least"),
    "less_than": _out_of_range("below"),
    "less_than_equal": _out_of_range("at most"),
    "value_error": _refused_value,
    "int_type": _wrong_number("a whole number"),
    "int_from_float": _wrong_type("a whole number"),
    "float_type": _wrong_number("a number"),
    "bool_type": _wrong_type("true or false"),
    "string_type": _wrong_type("text"),
    "string_pattern_mismatch": _wrong_type(
        "lower-case letters, digits and hyphens, a letter first"
    ),
    "model_type": _wrong_type(_BLOCK),
    "model_attributes_type": _wrong_type(_BLOCK),
    "list_type": _wrong_collection("a list"),
    "dict_type": _wrong_collection("a mapping"),
    "string_too_short": _unusable("text that is not empty"),
    "finite_number": _unusable("a finite number"),
}
