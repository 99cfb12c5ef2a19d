"""Read JSON that another process wrote as a type: what is missing or of another type is named.

Imports the standard library.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

R = TypeVar("R")


class WrongRecord(ValueError):
    """A record lacks a field, or a field is of another type; the text names record and field."""


def typed_record(record: object, kind: type[R], of: str) -> R:
    """`record` itself, as the TypedDict `kind`; fields that this one does not know stay in it.

    A field of type `object` can be anything. `of` says in a few words what was read.

    Raises:
        WrongRecord: a field of `kind` is missing, or its value is of another type.
    """
    _require(record, kind, of, "")
    return cast(R, record)


def _require(value: object, kind: object, of: str, field: str) -> None:
    if kind is object:
        return
    if is_typeddict(kind):
        _require_fields(value, kind, of, field)
    elif get_origin(kind) in (Union, UnionType):
        _require_one(value, get_args(kind), of, field)
    elif get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise _wrong(value, kind, of, field)
    elif get_origin(kind) in (list, Sequence):
        for number, one in enumerate(_of_type(value, list, of, field)):
            _require(one, get_args(kind)[0], of, f"{field}[{number}]")
    elif get_origin(kind) is dict:
        for name, one in _of_type(value, dict, of, field).items():
            _require(one, get_args(kind)[1], of, f"{field}.{name}" if field else str(name))
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(value, kind, of, field)
    elif type(value) is not kind:
        raise _wrong(value, kind, of, field)


def _require_fields(value: object, kind: Any, of: str, field: str) -> None:
    found = _of_type(value, dict, of, field)
    for name, hint in _hints(kind).items():
        place = f"{field}.{name}" if field else name
        if name in found:
            _require(found[name], hint, of, place)
        elif name in kind.__required_keys__:
            raise WrongRecord(f"{of} has no {place}")


def _require_one(value: object, kinds: tuple[object, ...], of: str, field: str) -> None:
    """That it is of one of these; where it is of none, the last says what is wrong."""
    if value is None and NoneType in kinds:
        return
    *others, last = (kind for kind in kinds if kind is not NoneType)
    for kind in others:
        with contextlib.suppress(WrongRecord):
            _require(value, kind, of, field)
            return
    _require(value, last, of, field)


@functools.cache
def _hints(kind: Any) -> dict[str, object]:
    return get_type_hints(kind)


def _of_type(value: object, kind: type[R], of: str, field: str) -> R:
    if not isinstance(value, kind):
        raise _wrong(value, kind, of, field)
    return value


_WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _wrong(value: object, kind: Any, of: str, field: str) -> WrongRecord:
    expected = _WORDS.get(kind) or " or ".join(map(repr, get_args(kind)))
    place = f"{of}, {field}" if field else of
    return WrongRecord(f"{place}: {_shown(value)} is not {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
