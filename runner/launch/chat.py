"""Talk to the model of a run, in a process of its own. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import UsageError
from runner.common.output import Output
from runner.common.own_python import safe_environment
from runner.engines.sft.inside.evaluate.thinking import thinking_line
from runner.engines.sft.inside.model.trained import require_result
from runner.engines.sft.plan import SftPlan
from runner.launch.left_out import say_left_out
from runner.launch.preflight import answering_gpu, require_run_stack
from runner.launch.recorded_plan import mount_of, plan_file, plan_to_ask, result_mounts
from runner.plans.engine_command import Question, question
from runner.runs.find import default_root, find_run
from runner.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run, known to be whole and to be asked here."""

    folder: RunFolder
    plan: SftPlan


@dataclass(frozen=True)
class ChatOptions:
    """How a model answers."""

    base: bool = False
    """Whether the base model answers beside it."""
    max_new_tokens: int = 200
    thinking: str = "show"
    """show or strip."""

    def words(self) -> list[str]:
        """As arguments of the process that answers."""
        words = ["--max-new-tokens", str(self.max_new_tokens), "--thinking", self.thinking]
        return [*words, *(["--base"] if self.base else [])]


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    thought: str | None
    """What it thought before; None where it did not."""
    is_closed: bool
    """Whether its thinking came to an end; not where the answer was cut within it."""

    @property
    def hidden_line(self) -> str:
        """How much of its thinking is not shown."""
        return thinking_line(self.thought or "", closed=self.is_closed)


@dataclass(frozen=True)
class Asked:
    """What was answered to one prompt."""

    exit_code: int
    """Of the process that answered; its refusal has been printed by it."""
    record: dict[str, Any]
    """As it answered; empty where it refused."""

    def answer(self, prefix: str = "") -> Answer:
        """Of the run's model; with "base_" of the base model."""
        thought = self.record.get(f"{prefix}thinking")
        closed = bool(self.record[f"{prefix}thinking_closed"]) if thought is not None else True
        return Answer(str(self.record[f"{prefix}answer"]), thought, closed)


def open_model(
    run: str, output: Output, *, trust_code: bool = False, runs: Path | None = None
) -> TrainedModel:
    """The model of a run. With `trust_code` the Python files of a foreign run's model may run.

    Raises:
        UsageError: no such run, or one without a model to load here.
        RefusedError: its result, or what trained it, is not here.
    """
    folder = find_run(run, runs or default_root())
    plan = plan_to_ask(folder, output, trust_code=trust_code)
    require_run_stack(plan)
    require_result(plan, folder)
    return TrainedModel(folder, plan)


def require_thinking(choice: str) -> None:
    """Refuse (UsageError) what says neither to show nor to strip think blocks."""
    if choice not in ("show", "strip"):
        raise UsageError(f"--thinking {choice} is not a choice", "show or strip")


def talk(model: TrainedModel, options: ChatOptions) -> int:
    """A conversation on this terminal; the exit code of the process that answers."""
    with _question(model, options.words()) as asked:
        say_left_out()
        return subprocess.call(asked.argv, env=safe_environment(to_terminal=True))


def ask(model: TrainedModel, prompt: str, options: ChatOptions) -> Asked:
    """The answer to one prompt."""
    with _question(model, [*options.words(), "--prompt-from-stdin"]) as asked:
        say_left_out()
        done = subprocess.run(
            asked.argv,
            input=prompt,
            encoding="utf-8",
            stdout=subprocess.PIPE,
            env=safe_environment(to_terminal=True),
        )
    return Asked(done.returncode, {} if done.returncode else json.loads(done.stdout))


@contextlib.contextmanager
def _question(model: TrainedModel, words: list[str]) -> Iterator[Question]:
    """The command that answers, while its plan's file is there."""
    plan, folder = model.plan, model.folder
    with plan_file(plan) as given:
        yield question(
            plan.container,
            ["runner.engines.sft.inside.chat", str(folder.path), str(given), *words],
            reads=[*result_mounts(plan, folder), mount_of(given)],
            interactive=True,
            gpu_uuids=answering_gpu(plan),
        )
