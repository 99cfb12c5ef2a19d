"""ScriptPlan: what a run of a user's own script does, as far as can be known of one.

Imports pydantic and runner.plans.base only. Made by runner.engines.script.resolve.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from runner.jobs.model import JobModel
from runner.plans.base import Plan, PlanHead


class PlannedInput(JobModel):
    """A file or folder that a script reads; a folder is known by its path only."""

    path: str
    kind: Literal["file", "folder"]
    sha256: str | None = None
    size_bytes: int | None = None


class ScriptPlanned(PlanHead):
    """What only a plan of a user's own script has."""

    engine: Literal["script"]
    script: PlannedInput
    runs_with: Literal["python", "bash", "itself"]
    arguments: list[str]
    environment: dict[str, str]
    inputs: list[PlannedInput]
    workdir: Literal["output", "source"]
    max_steps: int | None = Field(None, description="What {max_steps} stands for, in a smoke")


class ScriptPlan(Plan, ScriptPlanned):
    """Everything that decides what a run of a script does, as far as can be known of one."""

    def deciding(self) -> dict[str, object]:
        """What decides the outcome; files count by their hashes, folders by their paths."""
        record = super().deciding()
        for source in (record["script"], *record["inputs"]):
            if source["sha256"]:
                source["path"] = Path(source["path"]).name
        return record
