"""Why a conversation can't be encoded, as the error that names its row. Pure.

Imports `runner.common.errors` and this package's `encoded` and `template`.
"""

from __future__ import annotations

from collections.abc import Sequence

from runner.common.errors import Problem, SpecError
from runner.data.encoded import Line
from runner.data.template import Turn


def template_refusal(line: Line, problem: str, messages: Sequence[Turn], way_out: str) -> SpecError:
    roles = "roles: " + " ".join(str(message["role"]) for message in messages[:8])
    return SpecError([Problem(_name_row(line), "data.train", problem, roles, way_out)])


def unsafe_text_refusal(line: Line, problem: str) -> SpecError:
    return SpecError(
        [
            Problem(
                _name_row(line),
                "data.special_tokens",
                problem,
                expected="a row without; data.special_tokens: text encodes them as text where the "
                "tokenizer can, allow leaves them what they are",
            )
        ]
    )


def _name_row(line: Line) -> str:
    return line if isinstance(line, str) else f"row {line}"
