"""Warn at every start of what a job may do to this machine; refuse settings that weaken its
container. Prints and refuses; the warnings are made in runner.jobs.risks and
runner.launch.container_risks.
"""

from __future__ import annotations

import os
from pathlib import Path

from runner.common.output import Output, field
from runner.jobs.load import LoadedJob
from runner.jobs.risks import job_warnings, unnamed_secrets
from runner.launch.container_risks import FLAG, require_safe, seen_whole, undoing
from runner.plans.base import Plan
from runner.runs.find import default_root


def say_job_warnings(loaded: LoadedJob, out: Output) -> None:
    """A WARNING line for each field by which the job's author runs code or opens this machine."""
    for line in job_warnings(loaded.job):
        out.say(field("WARNING", line))


def settle_risks(
    loaded: LoadedJob, plan: Plan, runs: Path | None, out: Output, *, unsafe: bool
) -> None:
    """Say which file the job is, and what only the plan tells; refuse a container that is not
    closed, without the flag.

    Raises SpecError.
    """
    out.say(field("job", f"{loaded.name}: {loaded.path}"))
    require_safe(
        plan,
        where=str(loaded.path),
        runs=runs or default_root(),
        allowed=unsafe,
        sources=loaded.sources,
    )
    for line in plan_warnings(loaded, plan):
        out.say(field("WARNING", line))


def plan_warnings(loaded: LoadedJob, plan: Plan) -> list[str]:
    """What only the plan tells: secrets that stay here, folders that a container sees whole."""
    network = plan.container.network if plan.container else "none"
    present = {name for name, value in os.environ.items() if value}
    return [*seen_whole(plan), *unnamed_secrets(loaded.job, present, network)]


def all_warnings(loaded: LoadedJob, plan: Plan) -> list[str]:
    """For `check`, which starts nothing: the same, and what a start would be refused for."""
    refused = undoing(plan, where=str(loaded.path), runs=default_root(), sources=loaded.sources)
    return [
        *job_warnings(loaded.job),
        *plan_warnings(loaded, plan),
        *(
            f"train refuses this without {FLAG}: {one.where} {one.field} {one.value}: "
            f"{one.problem.partition(';')[0]}"
            for one in refused
        ),
    ]
