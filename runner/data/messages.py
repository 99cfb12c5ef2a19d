"""One turn of a conversation, as rows give it and as chat templates take it. Pure.

Imports the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NotRequired, TypedDict

Tools = list[Mapping[str, object]]
"""Tool definitions: {"type": "function", "function": {"name", "description", "parameters"}}."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""How rows and chat templates call what a model thinks before it answers: Qwen3, GLM and DeepSeek
read the first, newer ones the second, GPT-OSS the third."""


class Message(TypedDict):
    """One turn, in the form chat templates take."""

    role: str  # system, user, assistant or tool
    content: str
    reasoning_content: NotRequired[str]  # what the assistant thinks before it answers
    tool_calls: NotRequired[Tools]  # {"type": "function", "function": {"name", "arguments"}}
    name: NotRequired[str]  # of the tool whose result the turn is
    tool_call_id: NotRequired[str]
    trained: NotRequired[bool]  # False: an assistant turn that a mark of its row leaves untrained


def is_trained(message: Mapping[str, object]) -> bool:
    """Whether this turn is an answer that carries loss."""
    return message["role"] == "assistant" and bool(message.get("trained", True))


def compared_texts(message: Message) -> list[str]:
    """The texts by which two turns are told apart; of a plain turn its content alone."""
    texts = [message["content"]]
    if "reasoning_content" in message:
        texts.append("reasoning " + message["reasoning_content"])
    if "tool_calls" in message:
        texts.append("calls " + json.dumps(message["tool_calls"], sort_keys=True))
    return texts


def tools_text(tools: Tools) -> str:
    """Tool definitions as one text that is equal for equal definitions."""
    return json.dumps(tools, sort_keys=True)


def strings_in(value: object) -> Iterator[str]:
    """All texts in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from strings_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)
