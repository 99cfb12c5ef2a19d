"""`runner chat`: talk to the model of a run, or ask it once and print the answer."""

from __future__ import annotations

import sys
from pathlib import Path

from runner.common.errors import UsageError
from runner.common.output import Output
from runner.launch.chat import Answer, ChatOptions, ask, open_model, require_thinking
from runner.launch.chat import talk as talk_on_terminal


def talk(
    run: str,
    prompt: str | None,
    *,
    base: bool,
    max_new_tokens: int,
    thinking: str = "show",
    trust_code: bool = False,
    runs: Path | None,
    as_json: bool,
) -> int:
    """Exit code of the chat. With `base` the base model answers beside the run's.

    With `trust_code` the Python files of a foreign run's model may run.
    """
    require_thinking(thinking)
    out = Output(as_json=as_json)
    model = open_model(run, out, trust_code=trust_code, runs=runs)
    if prompt == "-":
        prompt = _standard_input()
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty")
    if as_json and prompt is None:
        raise UsageError("--json needs a prompt", "-p TEXT, or -p - to read it from stdin")
    options = ChatOptions(base, max_new_tokens, thinking)
    if prompt is None:
        return talk_on_terminal(model, options)
    asked = ask(model, prompt, options)
    if asked.exit_code == 0:
        lines = _said(asked.answer(), thinking)
        if base:
            beside = _said(asked.answer("base_"), thinking)
            lines = ["run", *_indented(lines), "base", *_indented(beside)]
        out.result({"run": model.folder.name, **asked.record}, lines)
    return asked.exit_code


def _standard_input() -> str:
    """All of it. Raises UsageError where it is no text in the encoding that it is said to have."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UsageError(
            f"the prompt on standard input is not {sys.stdin.encoding}",
            "PYTHONIOENCODING=utf-8 says that it is UTF-8",
        ) from None


def _said(answer: Answer, thinking: str) -> list[str]:
    """An answer, and what was thought before it or how much of that is not shown."""
    if answer.thought is None:
        return answer.text.splitlines() or [""]
    if thinking == "strip":
        return [answer.hidden_line, *answer.text.splitlines()]
    end = "</think>" if answer.is_closed else "(cut within its thinking: --max-new-tokens)"
    return ["<think>", *answer.thought.splitlines(), end, *answer.text.splitlines()]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
