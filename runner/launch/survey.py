"""Run the engine's survey of a plan in a subprocess: rows, parameters, disk.

Imports no torch. The rows that the survey prepares are cached for the run that follows, and so is
what it said (survey_cache): the same question is not asked twice.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from runner.common.errors import RefusedError
from runner.common.output import Output, field
from runner.common.units import format_bytes
from runner.engines.sft.plan import SftPlan
from runner.engines.sft.survey_record import SampleRow as SampleRow
from runner.engines.sft.survey_record import Survey
from runner.launch.ask_engine import ask_engine, read_answer
from runner.launch.survey_cache import keep_survey, kept_survey, survey_key
from runner.plans.plan_file import plan_yaml


def survey(plan: SftPlan, out: Output, samples: int = 0) -> Survey:
    """The document of runner.engines.sft.inside.survey for `plan`, its predicted memory included.

    Raises:
        EngineRefused: as the engine refused.
        RefusedError: it could not be asked, or what it answered is no survey.
    """
    key = survey_key(plan, samples)
    known = kept_survey(key) if key is not None else None
    if known is not None:
        out.say(field("surveyed", "before: the same plan, rows, model and packages"))
        return known
    out.say(field("preparing", "the rows, and counting parameters"))

    def arguments(folder: Path) -> list[str]:
        path = folder / "plan.yaml"
        path.write_text(plan_yaml(plan), encoding="utf-8")
        return ["runner.engines.sft.inside.survey", str(path), str(samples)]

    failed = "the plan could not be surveyed"
    record = read_answer(ask_engine(plan, out, arguments, failed=failed), Survey, failed=failed)
    if key is not None and key == survey_key(plan, samples):  # nothing changed meanwhile
        keep_survey(key, record)
    return record


def survey_lines(surveyed: Survey) -> list[str]:
    """Rows, parameters, steps and disk in a few lines, each training's own."""
    out = []
    for part in surveyed["trainings"]:
        place = f"{part['phase']}: " if part["phase"] else ""
        for number, text in enumerate(part["lines"]):
            label, _, rest = text.partition(" ")
            told = rest if label == "data" else text
            out.append(field("data" if number == 0 else "", place + told))
        count = part["parameters"]
        out.append(
            field(
                "parameters",
                f"{place}{count['trainable']:,} of {count['total']:,} trainable "
                f"({count['percent']:.2f} %)",
            )
        )
        out.append(
            field(
                "steps",
                f"{place}{part['steps']} of {part['global_batch']} rows, "
                f"{part['passes']:.2f} passes over {part['rows']:,} rows; "
                f"{part['saves']} checkpoints of about {format_bytes(part['checkpoint_bytes'])}",
            )
        )
    out.append(field("disk", f"about {format_bytes(surveyed['disk_bytes'])} for what is kept"))
    return out


def require_disk(folder: Path, needed_bytes: int, *, what: str) -> None:
    """Refuse before the start where the disk under `folder` has less free than is needed."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise RefusedError(
            f"the disk of {folder} has {format_bytes(free)} free; {what} will take about "
            f"{format_bytes(needed_bytes)}",
            "give another place with --runs DIR, keep fewer (training.save_total_limit), or save "
            "less often (training.save_steps)",
        )
