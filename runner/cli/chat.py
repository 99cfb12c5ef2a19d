"""`runner chat`: start the engine's chat in a process of its own. Imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from runner.common.errors import UsageError
from runner.common.output import Output
from runner.common.own_python import safe_environment
from runner.launch.left_out import say_left_out
from runner.launch.preflight import answering_gpu, require_run_stack
from runner.launch.recorded_plan import mount_of, plan_file, plan_to_ask, result_mounts
from runner.plans.engine_command import question
from runner.runs.find import default_root, find_run


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
    from runner.engines.sft.inside.model.trained import require_result

    if thinking not in ("show", "strip"):
        raise UsageError(f"--thinking {thinking} is not a choice", "show or strip")
    out = Output(as_json=as_json)
    folder = find_run(run, runs or default_root())
    plan = plan_to_ask(folder, out, trust_code=trust_code)
    require_run_stack(plan)
    require_result(plan, folder)
    if prompt == "-":
        prompt = _standard_input()
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty")
    if as_json and prompt is None:
        raise UsageError("--json needs a prompt", "-p TEXT, or -p - to read it from stdin")
    with plan_file(plan) as given:
        words = ["runner.engines.sft.inside.chat", str(folder.path), str(given)]
        words += ["--max-new-tokens", str(max_new_tokens)]
        words += ["--thinking", thinking]
        words += ["--base"] if base else []
        words += ["--prompt-from-stdin"] if prompt is not None else []
        asked = question(
            plan.container,
            words,
            reads=[*result_mounts(plan, folder), mount_of(given)],
            interactive=True,
            gpu_uuids=answering_gpu(plan),
        )
        say_left_out()
        if prompt is None:
            return subprocess.call(asked.argv, env=safe_environment(to_terminal=True))
        done = subprocess.run(
            asked.argv,
            input=prompt,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            env=safe_environment(to_terminal=True),
        )
    if done.returncode == 0:
        record = json.loads(done.stdout)
        lines = _said(record, "", thinking)
        if base:
            lines = ["run", *_indented(lines), "base", *_indented(_said(record, "base_", thinking))]
        out.result({"run": folder.name, **record}, lines)
    return done.returncode


def _standard_input() -> str:
    """All of it. Raises UsageError where it is no text in the encoding that it is said to have."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UsageError(
            f"the prompt on standard input is not {sys.stdin.encoding}",
            "PYTHONIOENCODING=utf-8 says that it is UTF-8",
        ) from None


def _said(record: dict[str, Any], prefix: str, thinking: str) -> list[str]:
    """An answer, and what was thought before it or how much of that is not shown."""
    from runner.engines.sft.inside.evaluate.thinking import thinking_line

    answer = str(record[f"{prefix}answer"])
    thought = record.get(f"{prefix}thinking")
    if thought is None:
        return answer.splitlines() or [""]
    closed = bool(record[f"{prefix}thinking_closed"])
    if thinking == "strip":
        return [thinking_line(thought, closed=closed), *answer.splitlines()]
    end = "</think>" if closed else "(cut within its thinking: --max-new-tokens)"
    return ["<think>", *thought.splitlines(), end, *answer.splitlines()]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
