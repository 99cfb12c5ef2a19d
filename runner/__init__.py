"""runner: declare a fine-tuning job once; check, render, run, guard and report it.

    from runner import load_job, train, open_run

    run = train(load_job("demo-identity", {"training.max_steps": 5}))
    print(run.outcome.reason, run.metrics()[-1].loss)

docs/python.md has the rest. Importing the package imports nothing but the standard library: a name
is looked up when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from runner.common.errors import RefusedError, RunnerError, SpecError, UsageError
    from runner.jobs.load import LoadedJob
    from runner.launch.api import reproduce, smoke, train
    from runner.launch.jobs import load_job
    from runner.launch.run import Run, list_runs, open_run

__all__ = [
    "LoadedJob",
    "RefusedError",
    "Run",
    "RunnerError",
    "SpecError",
    "UsageError",
    "list_runs",
    "load_job",
    "open_run",
    "reproduce",
    "smoke",
    "train",
]
_HOMES = {
    "LoadedJob": "runner.jobs.load",
    "RefusedError": "runner.common.errors",
    "Run": "runner.launch.run",
    "RunnerError": "runner.common.errors",
    "SpecError": "runner.common.errors",
    "UsageError": "runner.common.errors",
    "list_runs": "runner.launch.run",
    "load_job": "runner.launch.jobs",
    "open_run": "runner.launch.run",
    "reproduce": "runner.launch.api",
    "smoke": "runner.launch.api",
    "train": "runner.launch.api",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for. Raises AttributeError."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
