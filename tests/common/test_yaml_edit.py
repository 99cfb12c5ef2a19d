"""Setting fields in a YAML text leaves everything else of it as it stands."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.common.yaml_edit import NotEdited, set_fields
from runner.common.yaml_text import parse, to_yaml
from runner.engines.load import load_job
from tests.support.command import REPOSITORY

JOBS = sorted((REPOSITORY / "jobs").glob("*.yaml"))
NAMES = st.sampled_from(["a", "b_2", "model", "training", "x-y", "no", "true", "12", "e 1", "#"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from(["", "16GiB", "a, b", "a]b", "x: y", "# no", "it's", '"', "no", "1e3", "ä\n"]),
    st.text(max_size=8),
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        VALUES, lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3), max_leaves=6
    ),
    min_size=1,
    max_size=4,
)


def is_text(value: object) -> bool:
    """Whether YAML can say it at all: lone surrogates are no text."""
    try:
        return bool(parse(to_yaml([value]), "x")[0] == [value])
    except Exception:
        return False


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """A nested mapping and a YAML text of it, blocks and flow, with comments here and there."""
    tree = draw(TREES.filter(is_text))
    lines: list[str] = []

    def comment() -> None:
        if draw(st.booleans()):
            lines.append(draw(st.sampled_from(["# about what follows", "", "  # deeper"])))

    def block(mapping: dict[str, Any], indent: int) -> None:
        for name, value in mapping.items():
            comment()
            head = f"{' ' * indent}{to_yaml(name)}:"
            behind = draw(st.sampled_from(["", "  # behind", " "]))
            if isinstance(value, dict) and draw(st.booleans()):
                lines.append(head + behind)
                block(value, indent + draw(st.integers(1, 3)))
            elif value is None and draw(st.booleans()):
                lines.append(head + behind)
            else:
                lines.append(f"{head} {to_yaml(value)}{behind}")

    block(tree, 0)
    comment()
    return tree, "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))


def paths(tree: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every leaf of a tree."""
    out = []
    for name, value in tree.items():
        here = (*before, name)
        out += paths(value, here) if isinstance(value, dict) else [here]
    return out


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


@given(documents(), st.data())
@settings(max_examples=150, deadline=None)
def test_exactly_the_fields_that_are_asked_for_are_set(
    document: tuple[dict[str, Any], str], data: st.DataObject
) -> None:
    tree, text = document
    assert parse(text, "x")[0] == tree
    value = data.draw(VALUES.filter(is_text))
    path = data.draw(st.sampled_from(paths(tree)))
    new = data.draw(st.booleans())
    if new:  # beside it, one or two deep
        path = (*path[:-1], *data.draw(st.sampled_from([("new",), ("new", "deep")])))
    wanted = copy.deepcopy(tree)
    put(wanted, path, value)
    edited = set_fields(text, {".".join(path): value})
    assert parse(edited, "x")[0] == wanted
    before, after = text.splitlines(), edited.splitlines()
    if len(after) == len(before):  # one line changed, and all before and behind it is as it was
        assert sum(one != two for one, two in zip(before, after, strict=True)) <= 1
    else:
        assert len(after) == len(before) + 1
        assert any(after[:at] + after[at + 1 :] == before for at in range(len(after)))
    assert [one for one in before if one.lstrip().startswith("#")] == [
        one for one in after if one.lstrip().startswith("#")
    ]
    assert edited.count("# behind") == text.count("# behind")
    assert set_fields(edited, {".".join(path): value}) == edited


@given(documents(), st.data())
@settings(deadline=None)
def test_several_fields_at_once_are_all_set_or_none(
    document: tuple[dict[str, Any], str], data: st.DataObject
) -> None:
    tree, text = document
    chosen = data.draw(st.lists(st.sampled_from(paths(tree)), min_size=1, max_size=3, unique=True))
    wanted, fields = copy.deepcopy(tree), {}
    for number, path in enumerate(chosen):
        put(wanted, path, number)
        fields[".".join(path)] = number
    assert parse(set_fields(text, fields), "x")[0] == wanted


@pytest.mark.parametrize(
    ("text", "fields", "edited"),
    [
        ("a: 1\n", {"a": 2}, "a: 2\n"),
        ("a: 1  # one\n", {"b": 2}, "a: 1  # one\nb: 2\n"),
        ("a: 1", {"b": 2}, "a: 1\nb: 2\n"),
        ("a:\nb: 1\n", {"a": 2}, "a: 2\nb: 1\n"),
        ("a:  # none\nb: 1\n", {"a": 2}, "a: 2  # none\nb: 1\n"),
        ("a: {b: 1}\n", {"a.c": "x, y"}, "a: {b: 1, c: 'x, y'}\n"),
        ("a: {b: 1,}\n", {"a.b": "x, y"}, "a: {b: 'x, y',}\n"),
        ("a: {b: }\n", {"a.b": 3}, "a: {b: 3 }\n"),
        ("a: [1, 2]  # list\n", {"a": [3]}, "a: [3]  # list\n"),
        ("a:\n  - b: 1\n  - b: 2\n", {"a.1.b": 3}, "a:\n  - b: 1\n  - b: 3\n"),
        ("a:\n  - b: 1\n  - b: 2\n", {"a.0.c": 3}, "a:\n  - b: 1\n    c: 3\n  - b: 2\n"),
        ("a: |\n  long\n  text\nb: 1\n", {"a": "x"}, "a: x\nb: 1\n"),
        ("a:\n  b: |\n    long\nc: 1\n", {"a.d": 2}, "a:\n  b: |\n    long\n  d: 2\nc: 1\n"),
        (
            "a:\n  b:\n    c: 1\n# about d\nd: 2\n",
            {"a.e": 3},
            "a:\n  b:\n    c: 1\n  e: 3\n# about d\nd: 2\n",
        ),
        ("a: 1\n", {"b.c.d": True}, "a: 1\nb: {c: {d: true}}\n"),
        ("a: {b: 1}\n", {"a.b": None}, "a: {b: null}\n"),
        ("a: 1\r\nb: 2\r\n", {"a": 3}, "a: 3\r\nb: 2\r\n"),
    ],
)
def test_by_hand(text: str, fields: dict[str, Any], edited: str) -> None:
    assert set_fields(text, fields) == edited


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {"a": 1}),
        ("- 1\n", {"a": 1}),
        ("a: 1\n", {"a.b": 1}),
        ("a: {}\n", {"a.b": 1}),
        ("a: [1]\n", {"a.3": 1}),
        ("a:\n  b: 1\n", {"a": 1}),  # a block of several lines
        ("a: &x 1\nb: *x\n", {"a": 2}),  # the anchor would go
        ("a: &x 1\nb: *x\n", {"b": 2}),  # a would change with it
        ("a: &x {c: 1}\nb: *x\n", {"b.c": 2}),
        ("a: {b: [\n", {"a": 2}),
        ("a: 1\na: 2\n", {"a": 3}),
        ("a: 1\n", {"a": 3, "a.b": 1}),
    ],
)
def test_what_it_does_not_edit_it_says(text: str, fields: dict[str, Any]) -> None:
    with pytest.raises(NotEdited, match=r"\w"):
        set_fields(text, fields)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_of_ours_takes_the_usual_fields(path: Any, tmp_path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    fields: dict[str, Any] = {"budget.gpu_memory": "12GiB", "launch.num_processes": 1}
    if "\ntraining:" in text:
        fields |= {
            "training.per_device_train_batch_size": 1,
            "training.gradient_accumulation_steps": 16,
            "training.gradient_checkpointing": True,
            "training.gradient_checkpointing_layers": 7,
            "training.loss_chunk_tokens": 256,
            "launch.offload": "none",
        }
    edited = set_fields(text, fields)
    kept = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert kept == [line for line in edited.splitlines() if line.lstrip().startswith("#")]
    assert text.count(" #") == edited.count(" #")
    wanted = yaml.safe_load(yaml.safe_dump(parse(text, "x")[0]))
    for name, value in fields.items():
        put(wanted, tuple(name.split(".")), value)
    assert parse(edited, "x")[0] == wanted
    changed = set(edited.splitlines()) - set(text.splitlines())
    assert len(changed) <= len(fields)
    assert load_job(str(path)).name == path.stem
