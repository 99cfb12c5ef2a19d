"""Run one engine command in a subprocess, where the plan trains, and return its JSON.

Imports no torch. Lines on stderr that begin with "runner: " are printed as they come; the last line
on stdout is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, TypeVar

from runner.common.caches import cache_folder
from runner.common.errors import EXIT_INTERRUPTED, RefusedError, RunnerError
from runner.common.output import Output, field
from runner.common.own_python import safe_environment
from runner.common.typed_json import WrongRecord, typed_record
from runner.engines.mounts import plan_mounts
from runner.engines.sft.plan import SftPlan
from runner.plans.container.mounts import PREPARED
from runner.plans.engine_command import question

_OURS = "runner: "
R = TypeVar("R")


class Refusal(TypedDict):
    """The engine's document where it refused: its lines for the user."""

    error: list[str]


class EngineRefused(RunnerError):
    """The engine refused the plan; its own lines say why."""

    def __init__(self, told: list[str], exit_code: int) -> None:
        super().__init__(told[0] if told else "the engine refused")
        self._told = told
        self._code = exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self._code

    def lines(self) -> list[str]:
        return self._told


def ask_engine(
    plan: SftPlan, out: Output, arguments: Callable[[Path], list[str]], *, failed: str
) -> dict[str, object]:
    """The JSON document that `python -m ARGUMENTS` prints.

    Args:
        plan: says where it is asked, and what has to be seen there.
        out: is told of the progress.
        arguments: module and arguments; called with a folder for files that they name.
        failed: what could not be done, for the refusal, such as "the plan could not be surveyed".

    Raises:
        EngineRefused: as the engine refused.
        RefusedError: it could not be asked.
    """
    with tempfile.TemporaryDirectory(prefix="runner-ask-") as name:
        folder = Path(name)
        asked = question(
            plan.container,
            arguments(folder),
            reads=plan_mounts(plan, None, cache_folder()),
            writes=[folder],
            caches=[PREPARED, "vram"],
            environment=True,
        )
        process = subprocess.Popen(
            asked.argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=safe_environment(),
        )
        others: deque[str] = deque(maxlen=1)
        listener = threading.Thread(target=_listen, args=(process, out, others), daemon=True)
        listener.start()
        try:
            assert process.stdout is not None  # noqa: S101 - a pipe, see above
            printed = process.stdout.read()
            process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            asked.abandon()
            sys.exit(EXIT_INTERRUPTED)
        listener.join()
    try:
        record: object = json.loads(printed.splitlines()[-1])
        if not isinstance(record, dict):
            raise ValueError("no object")
    except (ValueError, IndexError):
        raise RefusedError(
            f"{failed}: {others[0] if others else 'no output'}",
            "runner doctor looks at the packages",
        ) from None
    if "error" in record:
        refusal = read_answer(record, Refusal, failed=failed)
        raise EngineRefused(refusal["error"], process.returncode)
    return record


def read_answer(record: object, kind: type[R], *, failed: str) -> R:
    """A document of the engine as the TypedDict `kind`.

    Raises:
        RefusedError: it lacks a field, or a field is of another type; the text names it.
    """
    try:
        return typed_record(record, kind, "the engine's answer")
    except WrongRecord as error:
        raise RefusedError(f"{failed}: {error}", "runner doctor looks at the packages") from None


def _listen(process: subprocess.Popen[str], out: Output, others: deque[str]) -> None:
    """Hand on what the engine says of its progress; of the libraries' chatter the last line."""
    assert process.stderr is not None  # noqa: S101 - a pipe, see above
    for line in process.stderr:
        if line.startswith(_OURS):
            out.say(field("", line.removeprefix(_OURS).rstrip()))
        elif line.strip():
            others.append(line.strip())
