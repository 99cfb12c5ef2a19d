"""What `runner evaluate` asks of the engine: request.json in the evaluation's folder.

Imports the standard library, runner.common.durable, shared_folder and the settings' model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.common import durable
from runner.common.errors import RunnerError
from runner.common.shared_folder import SharedFolder
from runner.jobs.training import EvaluationSettings

SCHEMA_VERSION = 1
PACKAGES = ("scikit-learn", "scipy", "matplotlib")
"""What an evaluation needs besides what trains."""


@dataclass(frozen=True)
class EvaluationFolder(SharedFolder):
    """The folder of one evaluation and the names of all that lies in it."""

    @property
    def request(self) -> Path:
        return self.path / "request.json"

    @property
    def plan(self) -> Path:
        """The plan as this evaluation takes it, of a MODEL or of a RUN."""
        return self.path / "plan.yaml"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def evaluation(self) -> Path:
        """Written last, with `complete`: what has none was cut short."""
        return self.path / "evaluation.json"

    @property
    def confusion(self) -> Path:
        return self.path / "confusion.png"


@dataclass(frozen=True)
class Request:
    """One evaluation."""

    target: str  # as the user named it
    run: Path | None  # the run's folder; None: the plan's model as it is
    plan: Path
    files: list[Path]  # none: the job's own held-out rows
    base: bool  # measure the base beside the run's model
    settings: EvaluationSettings


def write_request(folder: EvaluationFolder, request: Request) -> None:
    """Raises OSError where the disk refuses."""
    folder.write_json(
        folder.request,
        {
            "schema_version": SCHEMA_VERSION,
            "target": request.target,
            "run": str(request.run) if request.run else None,
            "plan": str(request.plan),
            "files": [str(path) for path in request.files],
            "base": request.base,
            "settings": request.settings.model_dump(mode="json"),
        },
    )


def read_request(folder: EvaluationFolder) -> Request:
    """Raises RunnerError where there is none, or it is not one of this version."""
    record: Any = durable.read_json(folder.request)
    try:
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {record['schema_version']}")
        return Request(
            target=record["target"],
            run=Path(record["run"]) if record["run"] else None,
            plan=Path(record["plan"]),
            files=[Path(text) for text in record["files"]],
            base=record["base"],
            settings=EvaluationSettings.model_validate(record["settings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunnerError(f"{folder.request} is not a request of this runner: {error}") from None
