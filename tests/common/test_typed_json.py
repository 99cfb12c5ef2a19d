"""JSON of another process is read as a type, and what is wrong of it is named."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import pytest

from runner.common.typed_json import WrongRecord, typed_record


class Inner(TypedDict):
    name: str
    share: float


class _Needed(TypedDict):
    count: int
    whole: bool
    inner: list[Inner]
    sizes: dict[str, int]
    word: Literal["on", "off"]
    either: list[str] | str | None
    anything: object


class Outer(_Needed, total=False):
    more: int


GOOD: dict[str, Any] = {
    "count": 3,
    "whole": True,
    "inner": [{"name": "a", "share": 1}, {"name": "b", "share": 0.5}],
    "sizes": {"x": 1},
    "word": "on",
    "either": None,
    "anything": [{}, 1],
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"more": 1}, {"unknown": []}, {"either": "a"}, {"either": ["a"]}, {"inner": []}],
    ids=str,
)
def test_a_record_of_the_type_is_given_as_it_is(changes: dict[str, Any]) -> None:
    record = GOOD | changes
    assert typed_record(record, Outer, "it") is record


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": True}, "it, count: True is not a whole number"),
        ({"count": 1.0}, "it, count: 1.0 is not a whole number"),
        ({"whole": 1}, "it, whole: 1 is not true or false"),
        ({"inner": {}}, "it, inner: {} is not a list"),
        ({"inner": [{"name": "a", "share": "b"}]}, "it, inner[0].share: 'b' is not a number"),
        ({"inner": [{"name": "a", "share": True}]}, "it, inner[0].share: True is not a number"),
        ({"inner": [{"name": "a"}]}, "it has no inner[0].share"),
        ({"sizes": {"x": None}}, "it, sizes.x: None is not a whole number"),
        ({"sizes": []}, "it, sizes: [] is not an object"),
        ({"word": "of"}, "it, word: 'of' is not 'on' or 'off'"),
        ({"either": [1]}, "it, either: [1] is not a text"),
        ({"more": "x" * 50}, "it, more: '" + "x" * 36 + "... is not a whole number"),
    ],
    ids=str,
)
def test_what_is_of_another_type_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongRecord) as raised:
        typed_record(GOOD | changes, Outer, "it")
    assert str(raised.value) == says


@pytest.mark.parametrize("name", sorted(GOOD))
def test_what_is_missing_is_named(name: str) -> None:
    record = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(WrongRecord) as raised:
        typed_record(record, Outer, "it")
    assert str(raised.value) == f"it has no {name}"


@pytest.mark.parametrize("record", [None, [], "x", 1])
def test_what_is_no_object_is_none(record: object) -> None:
    with pytest.raises(WrongRecord, match="is not an object"):
        typed_record(record, Outer, "it")
