"""Start and repeat runs from Python: what `import runner` offers beside `jobs` and `run`.

Lines that a command would print on stderr are passed to `say`, if it is given. Ctrl-C is Python's
KeyboardInterrupt; a run that was started continues until it is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.common.errors import RunnerError
from runner.common.output import Output
from runner.jobs.load import LoadedJob
from runner.launch import reproduce as reproduce_module
from runner.launch import smoke as smoke_module
from runner.launch.jobs import load_job
from runner.launch.resume import Choice
from runner.launch.run import Run
from runner.launch.smoke import SmokeResult
from runner.launch.start import said_by_supervisor, start_supervisor, took_over
from runner.launch.train import TrainOptions, prepare
from runner.runs.folder import RunFolder

Say = Callable[[str], None]
_SECONDS = 0.05


class _Reporter(Output):
    """Progress for a program: each line to its own function, and no result of its own."""

    def __init__(self, say: Say | None) -> None:
        super().__init__(as_json=True)
        self._say = say

    def say(self, line: str) -> None:
        if self._say is not None:
            self._say(line)

    def result(self, record: Any, lines: list[str]) -> None:
        return


def train(
    job: LoadedJob | str,
    *,
    wait: bool = True,
    runs: Path | str | None = None,
    max_steps: int | None = None,
    choice: Choice | None = None,
    queue: bool = False,
    say: Say | None = None,
) -> Run:
    """Start a job as `runner train` does, and give the run.

    Args:
        job: of load_job, or its name.
        wait: return once the run has ended; else as soon as it has a supervisor.
        runs: where runs are kept; None is runs/ or $RUNNER_RUNS.
        max_steps: optimizer steps in place of the job's own.
        choice: "resume" or "fresh"; None resumes the latest unfinished run of the same plan.
        queue: wait for a GPU that others hold.

    Raises:
        SpecError, RefusedError, UsageError: what is wrong or lacking; nothing has been started.
        RunnerError: the supervisor ended before it had the run.
    """
    loaded = load_job(job) if isinstance(job, str) else job
    place = None if runs is None else Path(runs)
    options = TrainOptions(max_steps=max_steps, runs=place, choice=choice, wait=queue)
    ready = prepare(loaded, options, _Reporter(say))
    supervisor = start_supervisor(ready.folder, ready.plan, resume=ready.resumes, wait=queue)
    run = Run(ready.folder.path)
    if wait:
        supervisor.wait()
        if run.outcome is None:
            raise _started_nothing(ready.folder, supervisor.returncode)
        return run
    while not took_over(ready.folder, supervisor):
        if supervisor.poll() is not None and not took_over(ready.folder, supervisor):
            raise _started_nothing(ready.folder, supervisor.returncode)
        time.sleep(_SECONDS)
    return run


def smoke(
    job: LoadedJob | str,
    *,
    max_steps: int | None = None,
    runs: Path | str | None = None,
    say: Say | None = None,
) -> SmokeResult:
    """Run a job for a few steps, end to end, with stand-ins for what is not on this machine.

    Raises:
        SpecError, RefusedError: as `train`.
    """
    loaded = load_job(job) if isinstance(job, str) else job
    place = None if runs is None else Path(runs)
    return smoke_module.smoke(loaded, _Reporter(say), max_steps=max_steps, runs=place)


def reproduce(
    run: Run | str,
    *,
    steps: int | None = None,
    runs: Path | str | None = None,
    say: Say | None = None,
) -> reproduce_module.Reproduction:
    """Run a run again from its manifest, and compare both.

    Raises:
        RefusedError, UsageError: as runner.launch.reproduce.reproduce.
    """
    name = run if isinstance(run, str) else str(run.folder)
    place = None if runs is None else Path(runs)
    return reproduce_module.reproduce(name, _Reporter(say), steps=steps, runs=place)


def _started_nothing(folder: RunFolder, code: int) -> RunnerError:
    told = said_by_supervisor(folder)
    why = told[0].removeprefix("error: ") if told else f"its supervisor ended with {code}"
    return RunnerError(f"{folder.name} was not started: {why}", f"its log: {folder.supervisor_log}")
