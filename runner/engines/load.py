"""Load a job of whatever engine: the reader of runner.jobs.load with the engines' types of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from runner.engines.registry import ENGINES
from runner.jobs.load import LoadedJob, read_job


def load_job(name: str, overrides: Sequence[str] = ()) -> LoadedJob:
    """Read, override and validate a job.

    Args:
        name: a JOB as on the command line.
        overrides: texts of the form "training.learning_rate=2e-4", values in YAML.

    Raises:
        UsageError: no such job. SpecError: every problem of the file and the overrides.
    """
    return read_job(name, overrides, {name: engine.job_type for name, engine in ENGINES.items()})
