"""Check a job without training: fields, data, masks, model and machine. Imports no torch.

The parts that need a tokenizer or torch run in a process of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.common.output import Output
from runner.engines.registry import engine_of
from runner.engines.render import summary
from runner.engines.sft.survey_record import Survey
from runner.jobs.load import LoadedJob
from runner.launch.calibrate import corrected_survey, memory_line
from runner.launch.gpus import preflight, with_free_cards
from runner.launch.plan import planned
from runner.launch.preflight import place_line, require_place
from runner.launch.risks import all_warnings
from runner.launch.survey import require_disk, survey
from runner.launch.vram import over_budget, require_fits
from runner.plans.base import Plan
from runner.plans.facts import HostFacts
from runner.runs.find import default_root
from runner.vram.prediction import Prediction


@dataclass(frozen=True)
class CheckedJob:
    """A job that can be trained here, and what was looked at."""

    plan: Plan
    summary: list[tuple[str, str]]
    """The plan in (label, text)."""
    place: str
    gpus: str
    """The line that a start says of its GPUs."""
    warnings: list[str]
    survey: Survey | None
    """What a survey found out of the rows and the model; None where these are its engine's own."""
    prediction: Prediction | None
    memory: str | None
    """The prediction in a line."""
    is_over_budget: bool
    """Predicted over its budget: it starts, and would be ended."""
    looked: list[str]
    """What its engine looked at, in lines."""
    looked_record: Mapping[str, Any] | None

    def to_record(self, job: str) -> dict[str, Any]:
        """JSON-ready."""
        plan, found = self.plan, self.survey
        record: dict[str, Any] = {"ok": True, "job": job, "plan_hash": plan.hash, "exit_code": 0}
        record["substitutions"] = plan.substitutions
        if found is not None:
            predicted = self.prediction and self.prediction.model_dump(mode="json")
            record |= {**found, "memory": predicted}
        record["warnings"] = self.warnings
        if self.looked_record is not None:
            record["preflight"] = self.looked_record
        return record


def check_job(loaded: LoadedJob, out: Output, *, samples: int = 0) -> CheckedJob:
    """Check a job as a start would, and more of its rows.

    Args:
        samples: rows of each training that are decoded, and stand in the survey.

    Raises:
        SpecError, RefusedError: what is wrong with the job or its data, or lacking here.
        EngineRefused: the same, as the engine says it.
    """
    any_plan, facts = planned(loaded, "train", None, out)
    known = engine_of(any_plan).predicted(any_plan, facts)
    if known is None:
        return _check_other(loaded, any_plan, facts, out)
    plan, own_facts = known
    gpus = preflight(with_free_cards(plan, wait=True))
    surveyed = survey(plan, out, samples)
    require_disk(
        default_root(), int(surveyed["disk_bytes"]), what="this run's checkpoints and result"
    )
    warnings = [*plan.warnings, *surveyed["warnings"], *all_warnings(loaded, plan)]
    prediction = corrected_survey(surveyed, plan, own_facts)
    over = over_budget(prediction, plan) if prediction is not None else None
    if prediction is not None:
        require_fits(prediction, plan, own_facts)
    return CheckedJob(
        plan=plan,
        summary=summary(plan),
        place=facts.place.line,
        gpus=gpus,
        warnings=[*warnings, *([over] if over else [])],
        survey=surveyed,
        prediction=prediction,
        memory=None if prediction is None else memory_line(prediction, plan),
        is_over_budget=over is not None,
        looked=[],
        looked_record=None,
    )


def _check_other(loaded: LoadedJob, plan: Plan, facts: HostFacts, out: Output) -> CheckedJob:
    """The check of a job whose rows and weights are its engine's own affair: files and machine."""
    looked = engine_of(plan).look_before(loaded, plan, out.say, images=True)
    require_place(plan, facts)
    return CheckedJob(
        plan=plan,
        summary=summary(plan),
        place=place_line(plan, facts),
        gpus=preflight(with_free_cards(plan, wait=True)),
        warnings=[*plan.warnings, *looked.warnings, *all_warnings(loaded, plan)],
        survey=None,
        prediction=None,
        memory=None,
        is_over_budget=False,
        looked=list(looked.lines),
        looked_record=looked.record,
    )
