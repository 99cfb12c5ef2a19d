"""List the host paths that a run's container sees, by asking the plan's engine."""

from __future__ import annotations

from pathlib import Path

from runner.engines.registry import engine_of
from runner.plans.base import Plan, PlannedMount
from runner.plans.container.mounts import run_mounts


def plan_mounts(
    plan: Plan,
    run_folder: Path | None,
    cache: Path,
    *,
    run_writable: bool = True,
    own_mounts: bool = True,
) -> list[PlannedMount]:
    """The mounts of a run, each target once; as runner.plans.container.mounts.run_mounts."""
    engine = engine_of(plan)
    return run_mounts(
        plan,
        engine.mounts(plan, cache),
        run_folder,
        cache,
        run_writable=run_writable,
        own_mounts=own_mounts,
        prepares_rows=engine.prepares_rows,
    )
