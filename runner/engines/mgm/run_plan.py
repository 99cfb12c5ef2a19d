"""MgmPlan: what a run of the MGM toolkit does, by the settings that its launch script is made of.

Imports pydantic, runner.plans.base and runner.engines.mgm's plan. Made by
runner.engines.mgm.resolve.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from runner.engines.mgm.plan import PlannedMgm
from runner.plans.base import Plan, PlanHead, PlannedLaunch


class MgmPlanned(PlanHead):
    """What only a plan of the toolkit has."""

    engine: Literal["mgm"]
    mgm: PlannedMgm
    scripts_sha256: str = Field(description="Of the stage scripts that the run folder gets")


class MgmPlan(Plan, MgmPlanned):
    """Everything that decides what a run of the toolkit does; files count by their paths."""

    def deciding(self) -> dict[str, object]:
        """What decides the outcome: not which GPU is taken, nor what was substituted twice."""
        record = super().deciding()
        for key in ("gpus", "python", "substitutions"):
            record["mgm"].pop(key)
        if not self.mgm.columns:  # as before there were any
            record["mgm"].pop("columns")
        return record

    def on_gpus(self, launch: PlannedLaunch) -> Self:
        """The same plan with the devices of `launch`, which the toolkit's commands name too."""
        named = self.mgm.model_copy(update={"gpus": type(self.mgm.gpus)(launch.gpu_uuids)})
        return self.model_copy(update={"launch": launch, "mgm": named})

    @property
    def planned_steps(self) -> int | None:
        """Of a smoke, both trainings together; the rows decide otherwise."""
        return None if self.mgm.max_steps is None else 2 * self.mgm.max_steps
