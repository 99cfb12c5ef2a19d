"""Turns of `messages` and `conversations` rows: roles, tool calls, reasoning, marks, order. Pure.

Imports this package's `marks`, `messages`, `row_notes`, `row_problems` and `tool_calls`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from runner.common.errors import nearest
from runner.data.marks import marks_in, turn_is_trained
from runner.data.messages import REASONING_KEYS, Message
from runner.data.row_notes import RowNotes
from runner.data.row_problems import RowProblems
from runner.data.tool_calls import calls_of, part_thought, read_calls, reasoning_of, result_text

ROLES: Mapping[str, str] = MappingProxyType(
    {
        "system": "system",
        "user": "user",
        "human": "user",
        "assistant": "assistant",
        "gpt": "assistant",
        # results of tools
        "tool": "tool",
        "observation": "tool",
        "tool_response": "tool",
        "function": "tool",
        "ipython": "tool",
        # calls of tools, as JSON text in their content
        "function_call": "call",
        "tool_call": "call",
    }
)
_TURN_KEYS = frozenset({"role", "content"})
_PLAIN_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_ORDER = "an optional system turn, then user and assistant in turn, with tool turns after calls"


def messages_of(
    turns: Sequence[object], key: str, problems: RowProblems, notes: RowNotes
) -> list[Message]:
    """A row's turns as messages. Raises SpecError for a turn that does not fit, or is out of order.

    A turn that is a tool call joins the assistant's turn right before it, if there is one: several
    calls at once are written so.
    """
    messages: list[Message] = []
    calls_alone = False  # the last message was made of call turns only
    for index, turn in enumerate(turns):
        name = f"{key}[{index}]"
        if not isinstance(turn, Mapping):
            problems.fail(name, "is not an object", turn, "role and content")
        if (
            turn.keys() == _TURN_KEYS and turn.get("role") in _PLAIN_ROLES
        ):  # nearly every turn there is
            content = turn["content"]
            if isinstance(content, str):
                messages.append({"role": turn["role"], "content": content})
                calls_alone = False
                continue
        whole, turn = turn, notes.without_ignored(turn)
        pair = ("role", "content")
        # ShareGPT's names; "messages" is only ever role and content
        if key == "conversations" and "role" not in turn and "from" in turn:
            pair = ("from", "value")
        written = problems.text(turn, pair[0], f"{name}.{pair[0]}")
        role = ROLES.get(written)
        if role is None:
            problems.fail(
                f"{name}.{pair[0]}",
                "is not a known role",
                written,
                ", ".join(ROLES),
                nearest(written, ROLES),
            )
        message = _message(turn, role, pair, name, problems)
        _mark(message, turn, "assistant" if role == "call" else role, key, name, problems, notes)
        notes.count_unused(whole, _used(message, pair, role), f"{key}[].")
        if role == "call" and messages and messages[-1]["role"] == "assistant":
            _join(messages[-1], message, name, calls_alone, problems)
        else:
            messages.append(message)
            calls_alone = role == "call"
    _check_order(messages, problems)
    return messages


def _message(
    turn: Mapping[str, object], role: str, pair: tuple[str, str], name: str, problems: RowProblems
) -> Message:
    if role == "call":
        text = turn.get(pair[1])
        thought, rest = part_thought(text) if isinstance(text, str) else ("", text)
        if rest is None or rest == "":
            problems.fail(f"{name}.{pair[1]}", "is empty", text, "a tool call as JSON")
        message: Message = {
            "role": "assistant",
            "content": thought,
            "tool_calls": read_calls(rest, f"{name}.{pair[1]}", problems),
        }
    elif role == "tool":
        held = dict(turn)
        held[pair[1]] = result_text(turn.get(pair[1]))
        content = problems.text(held, pair[1], f"{name}.{pair[1]}")
        message = {"role": "tool", "content": content}
        for key in ("name", "tool_call_id"):
            told = turn.get(key)
            if isinstance(told, str) and told:
                message[key] = told
        return message
    else:
        calls = calls_of(turn, name, problems)
        if calls and role != "assistant":
            problems.fail(
                f"{name}.tool_calls", f"is given in a {role} turn", turn.get("tool_calls"),
                "calls in the assistant's turns only",
            )  # fmt: skip
        # what only calls tools says nothing: OpenAI writes null there, or no content at all
        if calls and turn.get(pair[1]) is None:
            content = ""
        else:
            content = problems.text(turn, pair[1], f"{name}.{pair[1]}")
        message = {"role": role, "content": content}
        if calls:
            message["tool_calls"] = calls
    if message["role"] == "assistant":
        reasoning = reasoning_of(turn, f"{name}.", problems)
        if reasoning is not None:
            message["reasoning_content"] = reasoning
    return message


def _mark(
    message: Message,
    turn: Mapping[str, object],
    role: str,
    key: str,
    name: str,
    problems: RowProblems,
    notes: RowNotes,
) -> None:
    marks = marks_in(turn)
    if not marks:
        return
    trained = turn_is_trained(marks, role, name, problems)
    if trained is not None and role == "assistant":
        for mark in marks:
            notes.count_mark(f"{key}[].{mark}", trained)
        message["trained"] = trained


def _used(message: Message, pair: tuple[str, str], role: str) -> frozenset[str]:
    used = {*pair}
    if message["role"] == "assistant":
        used |= {*REASONING_KEYS}
        if role != "call":
            used |= {"tool_calls", "function_call"}
    if role == "tool":
        used |= {"name", "tool_call_id"}
    return frozenset(used)


def _join(
    before: Message, call: Message, name: str, calls_alone: bool, problems: RowProblems
) -> None:
    """Put a call turn into the assistant's turn right before it."""
    marked = [each.get("trained", True) for each in (before, call)]
    if marked[0] != marked[1]:
        problems.fail(
            name,
            "is marked otherwise than the assistant's turn before it, which it is part of",
            None,
            "one mark for a turn and its calls",
        )
    if call["content"]:
        joined = (before["content"], call["content"])
        before["content"] = "\n".join(text for text in joined if text)
    if "reasoning_content" in call:
        parts = (before.get("reasoning_content", ""), call["reasoning_content"])
        before["reasoning_content"] = "\n".join(text for text in parts if text)
    before["tool_calls"] = [*before.get("tool_calls", []), *call["tool_calls"]]


def _check_order(messages: Sequence[Message], problems: RowProblems) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    shown = " ".join(roles[:8])
    if "assistant" not in turns:
        problems.fail("turns", "no assistant turn to learn from", shown, "user, then assistant")
    before = ""
    for index, role in enumerate(turns):
        expected = {"": "user", "user": "assistant", "assistant": "user", "tool": "assistant"}
        right = role == expected[before] or (role == "tool" and before in ("assistant", "tool"))
        if not right:
            wanted = expected[before]
            problems.fail(
                "turns", f"turn {index + 1} is {role} where {wanted} should be", shown, _ORDER
            )
        before = role
