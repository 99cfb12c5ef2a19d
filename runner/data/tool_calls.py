"""Tool definitions, tool calls and reasoning of rows, from all the ways they are written. Pure.

Imports this package's `messages`, `read` and `row_problems`. The form that chat templates take is
OpenAI's: {"type": "function", "function": {...}}; shorter ones are put into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from runner.data.messages import REASONING_KEYS, Tools
from runner.data.row_problems import RowProblems

TOOL_KEYS = ("tools", "functions")
_CALL_KEYS = ("tool_calls", "function_call")
_CALL = '{"name": ..., "arguments": {...}}'
_DEFINITION = '{"type": "function", "function": {"name": ..., "parameters": {...}}}'
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def tools_of(
    row: Mapping[str, object], problems: RowProblems, keys: Sequence[str] = TOOL_KEYS
) -> Tools | None:
    """The row's tool definitions, under `tools` or OpenAI's older `functions`; None: it has none.

    A list of objects, or JSON text of one; each object whole or the bare function. Raises
    SpecError.
    """
    held = {key: row[key] for key in keys if not _is_empty(row.get(key))}
    if not held:
        return None
    if len(held) == 2:
        problems.fail("functions", "is given beside tools", held["functions"], "one of the two")
    ((key, value),) = held.items()
    unread = f"; data.ignore_keys: [{key}] leaves the key unread"
    found = _json(value, key, "a list of tool definitions" + unread, problems)
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list):
        problems.fail(key, "is not a list of tool definitions", value, f"[{_DEFINITION}]{unread}")
    return [
        _definition(_json(each, f"{key}[{index}]", _DEFINITION, problems), f"{key}[{index}]",
                    problems)
        for index, each in enumerate(found)
    ] or None  # fmt: skip


def calls_of(turn: Mapping[str, object], name: str, problems: RowProblems) -> Tools:
    """A turn's `tool_calls`, or OpenAI's older `function_call`; empty where it makes none."""
    older = turn.get("function_call")
    held = turn.get("tool_calls")
    if not _is_empty(older) and not _is_empty(held):
        problems.fail(
            f"{name}.function_call", "is given beside tool_calls", older, "one of the two"
        )
    if not _is_empty(older):
        return read_calls(older, f"{name}.function_call", problems)
    return [] if _is_empty(held) else read_calls(held, f"{name}.tool_calls", problems)


def read_calls(value: object, name: str, problems: RowProblems) -> Tools:
    """Calls written as an object, a list of them, or JSON text of either. Raises SpecError."""
    found = _json(value, name, _CALL, problems)
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list) or not found:
        problems.fail(name, "is not a list of tool calls", value, f"[{_CALL}]")
    return [_call(_json(each, name, _CALL, problems), name, problems) for each in found]


def part_thought(text: str) -> tuple[str, str]:
    """(a think block at the start, the rest) of a turn that is a tool call in text."""
    found = _THOUGHT.match(text)
    return (found[0].strip(), text[found.end() :]) if found else ("", text)


def reasoning_of(held: Mapping[str, object], name: str, problems: RowProblems) -> str | None:
    """What a turn, or a row beside its answer, gives as reasoning; None: nothing.

    Raises SpecError for what is not text, and for two keys that say different things.
    """
    found: str | None = None
    by = ""
    for key in REASONING_KEYS:
        value = held.get(key)
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            problems.fail(
                name + key, "is not a string", value,
                f"the reasoning as text; data.ignore_keys: [{key}] leaves the key unread",
            )  # fmt: skip
        if not value.strip():
            continue
        if found is not None and found.strip() != value.strip():
            problems.fail(name + key, f"says otherwise than {by}", value, "one of the two")
        found, by = value, key
    return found


def without_padding(row: Mapping[str, object], key: str) -> tuple[Mapping[str, object], bool]:
    """A row of a Parquet table without the nulls that its calls and definitions are filled up with.

    The columns of a table have one layout for all rows, so that a call gets a null for each
    argument of every other call. Returns the row, and whether there were any; `key` names the
    turns.
    """
    changed: dict[str, object] = {}
    for name in (*TOOL_KEYS, *_CALL_KEYS):
        if not _is_empty(row.get(name)):
            changed[name] = _unfilled(row[name])
    turns = row.get(key)
    if isinstance(turns, list):
        changed[key] = [
            {**turn, **{name: _unfilled(turn[name]) for name in _CALL_KEYS if turn.get(name)}}
            if isinstance(turn, Mapping)
            else turn
            for turn in turns
        ]
    found = any(changed[name] != row[name] for name in changed)
    return ({**row, **changed} if found else row), found


def result_text(value: object) -> object:
    """A tool's result as text: JSON for what is none; None stays, since it is no result."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _definition(value: object, name: str, problems: RowProblems) -> dict[str, object]:
    if not isinstance(value, Mapping):
        problems.fail(name, "is not a tool definition", value, _DEFINITION)
    inner = value.get("function")
    function = _without_nulls(inner if isinstance(inner, Mapping) else value)
    called = function.get("name")
    if not isinstance(called, str) or not called.strip():
        problems.fail(name, "is not a tool definition: it has no name", value, _DEFINITION)
    if isinstance(inner, Mapping):
        rest = _without_nulls({key: held for key, held in value.items() if key != "function"})
        return {"type": "function", **rest, "function": function}
    function.pop("type", None)
    return {"type": "function", "function": function}


def _call(value: object, name: str, problems: RowProblems) -> dict[str, object]:
    if not isinstance(value, Mapping):
        problems.fail(name, "is not a tool call", value, _CALL)
    inner = value.get("function")
    function = inner if isinstance(inner, Mapping) else value
    called = function.get("name")
    if not isinstance(called, str) or not called.strip():
        problems.fail(name, "calls no function by name", value, _CALL)
    written = function.get("arguments", function.get("parameters"))
    if written is None or (isinstance(written, str) and not written.strip()):
        written = {}
    arguments = _json(written, f"{name}: arguments of {called}", "an object", problems)
    if not isinstance(arguments, Mapping):
        problems.fail(
            name, f"the arguments of {called} are not an object", written, '{"name": value, ...}'
        )
    out: dict[str, object] = {
        "type": "function",
        "function": {"name": called, "arguments": dict(arguments)},
    }
    if isinstance(value.get("id"), str) and value["id"]:
        out["id"] = value["id"]
    return out


def _json(value: object, name: str, expected: str, problems: RowProblems) -> object:
    """The value, read where it is text. Raises SpecError for text that is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        problems.fail(name, f"is text that is not JSON ({told})", value, expected)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return out


def _unfilled(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _unfilled(inner) for key, inner in value.items() if inner is not None}
    return [_unfilled(inner) for inner in value] if isinstance(value, list) else value


def _without_nulls(held: Mapping[str, object]) -> dict[str, object]:
    """Without the keys that a table's other rows have (Parquet writes them as null)."""
    return {key: value for key, value in held.items() if value is not None}


def _is_empty(value: object) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())
