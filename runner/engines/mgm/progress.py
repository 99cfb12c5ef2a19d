"""Read how far a run of the toolkit is, from its stages' engine/stages.json. Reads records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runner.runs.folder import RunFolder
from runner.runs.records import object_at, stages_of, whole

MGM = ("pretrain", "finetune")
"""The toolkit's trainings, in order."""


@dataclass(frozen=True)
class StageNow:
    """Where a run of the toolkit stands, as its stages say (engine/stages.json)."""

    name: str | None = None
    steps: Mapping[str, int] | None = None
    """Of each training, from its rows or from its trainer."""
    saves: bool = False
    """Whether a stop saves a checkpoint of the training that runs."""
    warnings: tuple[str, ...] = ()


def stage_now(folder: RunFolder) -> StageNow:
    """What the stages last said; nothing of it where they said nothing."""
    said = object_at(folder.engine_stages)
    found = stages_of(folder)
    steps = said.get("trainings")
    counts = steps if isinstance(steps, dict) else {}
    return StageNow(
        name=found.get("stage"),
        steps={name: counts[name] for name in MGM if whole(counts.get(name))},
        saves=said.get("saves") is True,
        warnings=tuple(found.get("warnings", ())),
    )
