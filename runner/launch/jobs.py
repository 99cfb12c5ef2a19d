"""Read a job, say what it trains, and render it; nothing is started. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common.errors import UsageError, nearest
from runner.common.yaml_text import to_yaml
from runner.engines.load import load_job as read_job
from runner.engines.mgm.job import MgmJob
from runner.engines.registry import engine_of
from runner.engines.render import render
from runner.engines.resolve import make_any_plan
from runner.jobs.base import Job
from runner.jobs.load import LoadedJob

Overrides = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Rendered:
    """The files that a run of a job would have."""

    plan_hash: str
    files: dict[str, str]
    """Name -> text."""
    substitutions: list[str]
    absent: list[str]
    """What the run would need and this machine does not have; a smoke has stand-ins."""

    def text_of(self, name: str) -> str:
        """One file. Raises UsageError where there is none of that name."""
        if name in self.files:
            return self.files[name]
        near = nearest(name, self.files)
        raise UsageError(
            f"no rendered file {name!r} for this job; there are {', '.join(self.files)}",
            f"nearest: {near}" if near else None,
        )


def load_job(name: str | Path, overrides: Overrides = ()) -> LoadedJob:
    """Read and validate a job.

    Args:
        name: a name in jobs/, or the path of a YAML file.
        overrides: field -> value, or texts such as "training.max_steps=5" as after --set.

    Raises:
        UsageError: no such job. SpecError: every problem of the file and the overrides.
    """
    return read_job(str(name), _texts(overrides))


def is_of_toolkit(loaded: LoadedJob) -> bool:
    """Whether a job is the MGM toolkit's, whose fetch and prediction have views of their own."""
    return isinstance(loaded.job, MgmJob)


def describe_job(job: Job) -> dict[str, Any]:
    """What a job trains, in a word each: model, method, description."""
    return {**engine_of(job).describe_job(job), "description": job.description}


def render_job(job: LoadedJob, *, max_steps: int | None = None, smoke: bool = False) -> Rendered:
    """The files of a job's run, or of its smoke. Raises SpecError, RefusedError."""
    plan, facts = make_any_plan(job, "smoke" if smoke else "train", max_steps)
    absent = [] if smoke else list(engine_of(plan).absent_inputs(facts))
    return Rendered(plan.hash, render(plan), list(plan.substitutions), absent)


def _texts(overrides: Overrides) -> list[str]:
    if not isinstance(overrides, Mapping):
        return [str(text) for text in overrides]
    return [
        f"{name}={value if isinstance(value, str) else to_yaml(value)}"
        for name, value in overrides.items()
    ]
