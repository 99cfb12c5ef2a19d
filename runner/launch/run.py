"""Run: one run folder as a Python object, read again at each call; it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.common import durable
from runner.engines.render import read_any_plan
from runner.launch.stop import stop
from runner.launch.wait import states
from runner.plans.base import Plan
from runner.report.run import read_report
from runner.report.run_report import RunReport
from runner.runs.find import all_runs, default_root, find_run
from runner.runs.folder import RunFolder
from runner.runs.metrics import loss_lines
from runner.runs.outcome import Reason
from runner.runs.record_types import LossLine
from runner.runs.records import number, read_outcome, whole
from runner.runs.state import exit_code_of, state_of


@dataclass(frozen=True)
class Step:
    """One logged step."""

    step: int
    loss: float | None
    """None where it was not a number."""
    learning_rate: float | None
    tokens_per_second: float | None
    memory_bytes: int | None
    phase: str
    """The training that the step is of; empty where the run has but one."""


@dataclass(frozen=True)
class RunOutcome:
    """Why a run ended, and its figures; what it left unsaid is None."""

    reason: Reason | str
    """A Reason; the word itself where a newer runner wrote one that this one doesn't know."""
    exit_code: int
    message: str
    steps: int
    first_loss: float | None
    last_loss: float | None
    eval_loss: float | None
    peak_bytes: int | None
    predicted_bytes: int | None
    checkpoint: str | None
    """The newest whole checkpoint, relative to the run's folder."""
    result: str | None
    """The folder of the trained weights, relative to the run's folder."""
    adapter_sha256: str | None
    substitutions: tuple[str, ...]
    warnings: tuple[str, ...]


class Run:
    """A run, by its folder. Everything is read from there, so it may live or have ended."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = RunFolder(Path(folder).absolute())

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self._folder.path

    @property
    def name(self) -> str:
        """JOB/TIME-HASH, by which commands find it."""
        return self._folder.name

    @property
    def state(self) -> str:
        """running, queued, lost, ..., or the reason of its end."""
        return state_of(self._folder)

    @property
    def plan(self) -> Plan:
        """What the run does. Raises RunnerError where it can't be read."""
        return read_any_plan(self._folder.plan)

    @property
    def outcome(self) -> RunOutcome | None:
        """Why it ended; None as long as it lives, and of a lost run."""
        end = read_outcome(self._folder)
        if end is None:
            return None
        word = str(end["reason"])
        known = word in Reason.__members__.values()
        return RunOutcome(
            reason=Reason(word) if known else word,
            exit_code=int(end["exit_code"]),
            message=str(end["message"]),
            steps=int(end.get("steps") or 0),
            first_loss=end.get("first_loss"),
            last_loss=end.get("last_loss"),
            eval_loss=end.get("eval_loss"),
            peak_bytes=end.get("peak_bytes"),
            predicted_bytes=end.get("predicted_bytes"),
            checkpoint=end.get("checkpoint"),
            result=end.get("result"),
            adapter_sha256=end.get("adapter_sha256"),
            substitutions=tuple(end.get("substitutions") or ()),
            warnings=tuple(end.get("warnings") or ()),
        )

    @property
    def exit_code(self) -> int | None:
        """0 completed, else as docs/exit-codes.md; None as long as it lives."""
        state = self.state
        return exit_code_of(self._folder, state) if self.outcome is not None else None

    def metrics(self) -> list[Step]:
        """Every logged step that has a loss, in the order of the log."""
        return [_step(line) for line in loss_lines(self._folder.metrics)]

    def report(self) -> RunReport:
        """The document of `runner report --json`."""
        return read_report(self._folder)

    def log(self) -> Iterator[str]:
        """The lines that the trainer printed."""
        content = durable.read_record(self._folder.train_log, durable.MAX_JSON_BYTES)
        yield from content.decode(errors="replace").splitlines()

    def wait(self) -> Run:
        """Block until nothing more comes of the run; itself.

        Raises:
            RefusedError: nobody has started it. RunnerError: its folder was removed.
        """
        for _ in states(self._folder):
            pass
        return self

    def stop(self, *, now: bool = False) -> Run:
        """End the run, after a checkpoint unless `now`, and wait for that; itself.

        Raises:
            RefusedError: it does not run, or is another user's.
        """
        stop(self._folder, now=now, say=_nothing)
        return self


def open_run(run: str = "@last", runs: Path | str | None = None) -> Run:
    """A run by its folder, name, unique prefix, or @last.

    Args:
        runs: where runs are kept; None is runs/ or $RUNNER_RUNS.

    Raises:
        UsageError: there is none, naming the nearest.
    """
    return Run(find_run(run, Path(runs) if runs is not None else default_root()).path)


def list_runs(runs: Path | str | None = None) -> list[Run]:
    """Every run that is kept, in the order of their start."""
    return [Run(folder.path) for folder in all_runs(Path(runs) if runs else default_root())]


def _nothing(text: str) -> None:
    return


def _number(value: object) -> float | None:
    return value if number(value) else None


def _step(line: LossLine) -> Step:
    return Step(
        step=line["step"],
        loss=line["loss"],
        learning_rate=_number(line.get("learning_rate")),
        tokens_per_second=_number(line.get("tokens_per_second")),
        memory_bytes=memory if whole(memory := line.get("memory_bytes")) else None,
        phase=str(line.get("phase") or ""),
    )
