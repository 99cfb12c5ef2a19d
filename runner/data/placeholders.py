"""Fill the {{name}} placeholders of a message.

Imports the standard library, `runner.common.errors` and this package's `messages`, `read` and
`row_problems`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from runner.common.errors import nearest
from runner.data.messages import Message
from runner.data.read import shorten
from runner.data.row_problems import RowProblems

_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]+?)\s*\}\}")


def fill_message(message: Message, placeholders: Mapping[str, str], problems: RowProblems) -> None:
    message["content"] = _fill(message["content"], placeholders, problems)
    if "reasoning_content" in message:
        message["reasoning_content"] = _fill(message["reasoning_content"], placeholders, problems)
    if "tool_calls" in message:
        message["tool_calls"] = [
            {**call, "function": _filled(call["function"], placeholders, problems)}
            for call in message["tool_calls"]
        ]


def _filled(value: object, placeholders: Mapping[str, str], problems: RowProblems) -> object:
    """A JSON value with the placeholders of its texts replaced."""
    if isinstance(value, str):
        return _fill(value, placeholders, problems)
    if isinstance(value, dict):
        return {key: _filled(inner, placeholders, problems) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, placeholders, problems) for inner in value]
    return value


def _fill(content: str, placeholders: Mapping[str, str], problems: RowProblems) -> str:
    """The content with its {{name}} placeholders replaced, in one pass."""

    def replaced(found: re.Match[str]) -> str:
        name = found[1]
        if name not in placeholders:
            problems.fail(
                "content",
                f"placeholder {found[0]} is not filled",
                content,
                "data.placeholders with " + shorten(", ".join([*placeholders, name]), 200),
                nearest(name, placeholders),
            )
        return placeholders[name]

    return _PLACEHOLDER.sub(replaced, content)
